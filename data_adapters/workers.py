"""Candidates through ``stage``, here or in worker processes; results come in the given order."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from threading import Thread

from data_adapters.reasons import Unusable
from data_adapters.staging import Staged, Task, stage
from data_adapters.types import Quarantined

Result = Staged | Quarantined
# Tasks in flight for each worker: enough to keep it busy, few enough to keep memory small.
DEPTH = 2


def stage_all(tasks: Iterable[Task], workers: int) -> Iterator[tuple[Task, Result]]:
    """Yield every task with its result, in order.

    A worker that dies (a decoder that crashes) costs that scan only: what was in flight is tried
    again, one task a process.
    """
    if workers <= 1:
        yield from ((task, stage(task)) for task in tasks)
        return
    waiting: deque[tuple[Task, Future[Result]]] = deque()
    pool = _pool(workers)
    try:
        for task in tasks:
            waiting.append((task, pool.submit(stage, task)))
            if len(waiting) >= workers * DEPTH:
                done, result, pool = _next(waiting, pool, workers)
                yield done, result
        while waiting:
            done, result, pool = _next(waiting, pool, workers)
            yield done, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: tensorstore's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)


def end_with_parent() -> None:
    """Make this process end when the one that started it does, however that ends.

    Else a killed ingest leaves workers behind that wait for ever, or still write.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _next(
    waiting: deque[tuple[Task, Future[Result]]], pool: ProcessPoolExecutor, workers: int
) -> tuple[Task, Result, ProcessPoolExecutor]:
    task, future = waiting.popleft()
    try:
        return task, future.result(), pool
    except BrokenProcessPool:
        pool.shutdown(wait=False, cancel_futures=True)
        result = _alone(task)
        pool = _pool(workers)
        again = [(other, pool.submit(stage, other)) for other, _ in waiting]
        waiting.clear()
        waiting.extend(again)
        return task, result, pool


def _alone(task: Task) -> Result:
    """Try one task in a process of its own, which may die."""
    with _pool(1) as pool:
        try:
            return pool.submit(stage, task).result()
        except BrokenProcessPool:
            return Unusable("READER_DIED").at(task.candidate.where)
