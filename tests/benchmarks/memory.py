"""Part 3: resident memory of a process and its workers beside the cache that was declared."""

from multiprocessing import get_context
from time import perf_counter, sleep
from typing import Any

from tests.benchmarks.patch_readers import open_ours
from tests.benchmarks.patch_regions import endless
from tests.benchmarks.sizes import MIB, Sizes
from tests.benchmarks.tables import Section
from tests.benchmarks.volumes import Volume, Volumes

SAMPLE_S = 0.1
STARTED_S = 60.0
Record = dict[str, Any]


def measure_memory(volumes: Volumes, sizes: Sizes) -> Section:
    """Return the table of all declared sizes."""
    cases = [
        (name, volume, int(share * sizes.volume_bytes))
        for name, volume in (("in place", volumes.plain), ("copied", volumes.copied))
        for share in sizes.cache_shares
    ]
    records = [_record(name, volume, each, sizes) for name, volume, each in cases]
    return Section(
        title=f"Memory of a process and {sizes.num_workers} spawned workers that read random "
        f"patches of {sizes.patch}^3: MiB, pages that are shared counted once (PSS)",
        columns=(
            "scan",
            "declared",
            "opened",
            "peak",
            "peak - declared",
            "over no cache",
            "patches/s",
        ),
        records=tuple(records),
        lines=tuple(_line(record, records) for record in records),
        notes=(
            "declared: caches of decoded chunks, of all workers together. opened: before the "
            "first patch. over no cache: peak - declared, beyond the peak without any cache; it "
            "does not grow with what is declared where that and a constant hold everything. "
            "patches/s: of all workers together.",
        ),
    )


def _record(name: str, volume: Volume, cache_bytes: int, sizes: Sizes) -> Record:
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    parent = context.Process(target=_parent, args=(sender, volume, cache_bytes, sizes))
    parent.start()
    sender.close()
    opened, peak, num_patches = receiver.recv()
    parent.join()
    return {
        "scan": name,
        "declared_bytes": cache_bytes * sizes.num_workers,
        "opened_bytes": opened,
        "peak_bytes": peak,
        "num_patches": num_patches,
        "patches_per_s": num_patches / sizes.reading_s,
    }


def _parent(sender: Any, volume: Volume, cache_bytes: int, sizes: Sizes) -> None:
    """Start workers and watch them; this process and they are all that is counted."""
    context = get_context("spawn")
    ready, go = context.Barrier(sizes.num_workers + 1), context.Event()
    counted = context.Value("q", 0)
    workers = [
        context.Process(target=_work, args=(volume, cache_bytes, sizes, seed, (ready, go, counted)))
        for seed in range(sizes.num_workers)
    ]
    for worker in workers:
        worker.start()
    ready.wait(STARTED_S)
    opened = peak = resident_bytes()
    go.set()
    while any(worker.is_alive() for worker in workers):
        peak = max(peak, resident_bytes())
        sleep(SAMPLE_S)
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a worker died")
    sender.send((opened, peak, counted.value))


def _work(volume: Volume, cache_bytes: int, sizes: Sizes, seed: int, shared: Any) -> None:
    ready, go, counted = shared
    scan = open_ours(volume, cache_bytes)
    regions, num_patches = endless("random", sizes, seed), 0
    ready.wait(STARTED_S)
    go.wait()
    start = perf_counter()
    while perf_counter() - start < sizes.reading_s:
        scan.image(next(regions))
        num_patches += 1
    with counted.get_lock():
        counted.value += num_patches


def resident_bytes() -> int:
    """Return the proportional set size of this process and all below it (proc_pid_smaps(5))."""
    import psutil

    total = 0
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def _line(record: Record, records: list[Record]) -> tuple[str, ...]:
    without = next(
        other["peak_bytes"]
        for other in records
        if other["scan"] == record["scan"] and not other["declared_bytes"]
    )
    rest = record["peak_bytes"] - record["declared_bytes"]
    numbers = (record["declared_bytes"], record["opened_bytes"], record["peak_bytes"], rest)
    return (
        record["scan"],
        *(f"{n / MIB:.0f}" for n in numbers),
        f"{(rest - without) / MIB:+.0f}",
        f"{record['patches_per_s']:,.0f}",
    )
