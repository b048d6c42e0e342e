"""How far a mirror is: files that are there, of all that are awaited."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Progress = Callable[[int, int], None]


@dataclass
class Arrived:
    """Counts files over all studies, for several threads.

    What a study has is at first what the service announced, which counts objects that are not
    wanted; then what was listed; at its end what came.
    """

    progress: Progress | None
    _expected: Counter[str] = field(default_factory=Counter, repr=False)
    _here: Counter[str] = field(default_factory=Counter, repr=False)
    _num_expected: int = 0
    _num_here: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._tell()

    def expect(self, announced: Mapping[str, int]) -> None:
        """Say which studies there are, each with the number of its files as far as is known."""
        with self._lock:
            for study, number in announced.items():
                self._set_expected(study, number)
            self._tell()

    def know(self, study: str, number: int) -> None:
        """Correct how many files a study has."""
        with self._lock:
            self._set_expected(study, number)

    def add(self, study: str, number: int = 1) -> None:
        """Count files of a study that are there."""
        with self._lock:
            self._here[study] += number
            self._num_here += number
            self._tell()

    def end(self, study: str) -> None:
        """Await no more of a study."""
        with self._lock:
            self._set_expected(study, self._here[study])
            self._tell()

    def _set_expected(self, study: str, number: int) -> None:
        self._num_expected += number - self._expected[study]
        self._expected[study] = number

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self._num_here, self._num_expected)
