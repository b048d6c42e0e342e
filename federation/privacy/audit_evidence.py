"""What a self-audit has seen so far: counts and sums that add over steps and rounds. Torch-free.

A round may have five steps, too few to tell anything. So evidence is a value that a site writes as
JSON beside its ledger after each round and reads before the next. It holds secrets of the site (who
was sampled how often, in sums; the canaries' coins): it never leaves, and no identifier is in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from federation.privacy.audit_statistics import (
    ChernoffTally,
    Floats,
    Overlap,
    bonferroni,
    count_p_value,
    normal_p_value,
    overlaps_grid,
    shape_p_value,
    squares,
    squares_grid,
    squares_log_mgf,
    variance_p_value,
)

NUM_CELLS = 256


@dataclass(frozen=True)
class InclusionTally:
    """Who entered which step, of one population (the canaries, or the real subjects).

    Under Poisson sampling each of ``trials`` coins falls by itself. What each statistic catches:
    ``hits`` another sampling rate; ``batch_sizes`` batches of a fixed size (shuffling) or coins
    shared between subjects; ``per_subject`` subjects that all enter equally often (shuffling) or
    at different rates; ``overlaps`` batches that avoid or repeat the one before.
    """

    trials: int = 0
    hits: int = 0
    batch_sizes: ChernoffTally = field(default_factory=ChernoffTally)
    per_subject: ChernoffTally = field(default_factory=ChernoffTally)
    overlaps: ChernoffTally = field(default_factory=ChernoffTally)
    pairs: int = 0
    overlaps_if_none: float = 0.0

    def after_round(
        self, batches: Sequence[Sequence[int]], population: int, rate: float
    ) -> "InclusionTally":
        """Return the tally with one round's batches added.

        Args:
            batches: Of each step, who of ``range(population)`` entered.
        """
        if not batches or not population:
            return self
        sizes = np.array([len(batch) for batch in batches])
        entered = [index for batch in batches for index in batch]
        counts = np.bincount(entered, minlength=population) if entered else np.zeros(population)
        counted = replace(
            self,
            trials=self.trials + population * len(batches),
            hits=self.hits + int(sizes.sum()),
        )
        if rate == 1.0:
            return counted
        return replace(
            counted,
            batch_sizes=_with_squares(self.batch_sizes, sizes, population, rate),
            per_subject=_with_squares(
                self.per_subject, counts.astype(np.int64), len(batches), rate
            ),
        )._with_overlaps(batches, population)

    def _with_overlaps(self, batches: Sequence[Sequence[int]], population: int) -> "InclusionTally":
        tally, none, pairs = self.overlaps, self.overlaps_if_none, self.pairs
        for first, second in pairwise(batches):
            shared = len(set(first) & set(second))
            overlap = Overlap.of(shared, population, len(first), len(second))
            if overlap is not None:
                tally = tally.plus(overlap.deviation, overlap.log_mgf)
                none, pairs = none + overlap.if_none, pairs + 1
        return replace(self, overlaps=tally, overlaps_if_none=none, pairs=pairs)

    def p_values(self, rate: float) -> dict[str, float]:
        """Return a p-value for each statistic."""
        return {
            "sampling rate": count_p_value(self.hits, self.trials, rate),
            "batch sizes": self.batch_sizes.p_value(squares_grid()),
            "inclusions per subject": self.per_subject.p_value(squares_grid()),
            "overlap of neighbouring batches": self.overlaps.p_value(overlaps_grid()),
        }

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        tallies = {
            name: _tally_json(getattr(self, name))
            for name in ("batch_sizes", "per_subject", "overlaps")
        }
        names = ("trials", "hits", "pairs", "overlaps_if_none")
        return tallies | {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return what ``to_json`` wrote."""
        tallies = {
            name: ChernoffTally(value[name]["observed"], np.array(value[name]["log_mgf"]))
            for name in ("batch_sizes", "per_subject", "overlaps")
        }
        return cls(**{**value, **tallies})


def _with_squares(
    tally: ChernoffTally, counts: npt.NDArray[np.int64], trials: int, rate: float
) -> ChernoffTally:
    law = squares_log_mgf(trials, rate)
    return tally.plus(squares(counts, trials, rate), len(counts) * law)


def _tally_json(tally: ChernoffTally) -> dict[str, Any]:
    return {"observed": tally.observed, "log_mgf": tally.log_mgf.tolist()}


@dataclass(frozen=True)
class NoiseTally:
    """Values that should be independent standard normals: sums, squares, and products.

    Attributes:
        lag_total: Of z(t)·z(t-1) / |z(t-1)|, each a standard normal: noise used twice shows.
        next_total: The same between one tensor and the next one of the same step.
    """

    values: int = 0
    total: float = 0.0
    squares: float = 0.0
    lags: int = 0
    lag_total: float = 0.0
    nexts: int = 0
    next_total: float = 0.0

    def plus(self, noise: Floats) -> "NoiseTally":
        """Return the tally with one step's noise added, in units of its proper deviation."""
        return replace(
            self,
            values=self.values + noise.size,
            total=self.total + float(noise.sum()),
            squares=self.squares + float(np.square(noise).sum()),
        )

    def after(self, noise: Floats, before: Floats | None) -> "NoiseTally":
        """Return the tally with a product added: the same coordinates, one step earlier."""
        product, count = _product(noise, before)
        return replace(self, lags=self.lags + count, lag_total=self.lag_total + product)

    def beside(self, noise: Floats, other: Floats | None) -> "NoiseTally":
        """Return the tally with a product added: the tensor before this one, same step."""
        product, count = _product(noise, other)
        return replace(self, nexts=self.nexts + count, next_total=self.next_total + product)

    def p_values(self) -> dict[str, float]:
        """Return a p-value for each statistic."""
        return {
            "variance": variance_p_value(self.squares, self.values),
            "mean": normal_p_value(self.total, self.values),
            "same noise twice": normal_p_value(self.lag_total, self.lags),
            "same noise for two tensors": normal_p_value(self.next_total, self.nexts),
        }

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _product(noise: Floats, other: Floats | None) -> tuple[float, int]:
    """Return the product with other noise, standard normal given that other, and 1; else zeros."""
    if other is None:
        return 0.0, 0
    length = min(noise.size, other.size)
    size = float(np.linalg.norm(other[:length]))
    return (0.0, 0) if size == 0.0 else (float(noise[:length] @ other[:length]) / size, 1)


def cells(noise: Floats) -> npt.NDArray[np.int64]:
    """Return how many values fall into each of ``NUM_CELLS`` cells that are equally likely."""
    places = np.minimum((special.ndtr(noise) * NUM_CELLS).astype(np.int64), NUM_CELLS - 1)
    return np.bincount(places, minlength=NUM_CELLS)


@dataclass(frozen=True)
class Evidence:
    """All that the audit of one run has seen.

    Attributes:
        block: Noise of real steps on the canaries' coordinates, where no canary was summed.
        clipped: How many canaries were summed, and the total of what was seen of them, in clips.
        tensors: Noise of each tensor in steps of pure noise, the canary block last.
        scores: Each canary's log-likelihood ratio, summed over steps.
        first_noise: The block's noise in the last round's first step.
        contributions: Calls watched that added real subjects to a step's sum: each step's first.
        contributions_longer: How many of these had a gradient longer than the clip norm.
        contributions_over: How many of these moved the sum further than clipping allows.
        unobserved: Rounds that the audit failed in. Nothing else of them is in here.
    """

    plan_digest: str
    present: npt.NDArray[np.bool_]
    scores: Floats
    rounds: int = 0
    steps: int = 0
    canaries: InclusionTally = field(default_factory=InclusionTally)
    subjects: InclusionTally = field(default_factory=InclusionTally)
    block: NoiseTally = field(default_factory=NoiseTally)
    block_cells: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(NUM_CELLS, dtype=np.int64)
    )
    clipped: tuple[int, float] = (0, 0.0)
    tensors: tuple[NoiseTally, ...] = ()
    tensor_cells: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(NUM_CELLS, dtype=np.int64)
    )
    first_noise: Floats = field(default_factory=lambda: np.zeros(0))
    contributions: int = 0
    contributions_longer: int = 0
    contributions_over: int = 0
    unobserved: int = 0

    def tensor_p_values(self) -> dict[str, float]:
        """Return a p-value for each statistic over all tensors together, and their shape."""
        found: dict[str, float] = {}
        each = [tally.p_values() for tally in self.tensors]
        for name in each[0] if each else ():
            found[name] = bonferroni([p_values[name] for p_values in each])
        return found | ({"shape": shape_p_value(self.tensor_cells)} if each else {})

    def to_json(self) -> dict[str, Any]:
        """Return JSON values. They stay at the site."""
        return {
            "format": "cohortium-audit-evidence/1",
            "plan_digest": self.plan_digest,
            "present": np.packbits(self.present).tobytes().hex(),
            "num_canaries": len(self.present),
            "scores": self.scores.tolist(),
            "rounds": self.rounds,
            "steps": self.steps,
            "canaries": self.canaries.to_json(),
            "subjects": self.subjects.to_json(),
            "block": self.block.to_json(),
            "block_cells": self.block_cells.tolist(),
            "clipped": list(self.clipped),
            "tensors": [tally.to_json() for tally in self.tensors],
            "tensor_cells": self.tensor_cells.tolist(),
            "first_noise": self.first_noise.round(6).tolist(),
            "contributions": self.contributions,
            "contributions_longer": self.contributions_longer,
            "contributions_over": self.contributions_over,
            "unobserved": self.unobserved,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return what ``to_json`` wrote.

        Raises:
            ValueError: It is not this format.
        """
        value = dict(value)
        if value.pop("format", None) != "cohortium-audit-evidence/1":
            raise ValueError("this is no evidence of a privacy self-audit, format 1")
        packed = np.frombuffer(bytes.fromhex(value["present"]), dtype=np.uint8)
        count, hits = value["clipped"]
        read = {
            "present": np.unpackbits(packed, count=value.pop("num_canaries")).astype(bool),
            "scores": np.array(value["scores"]),
            "canaries": InclusionTally.from_json(value["canaries"]),
            "subjects": InclusionTally.from_json(value["subjects"]),
            "block": NoiseTally(**value["block"]),
            "block_cells": np.array(value["block_cells"]),
            "clipped": (count, hits),
            "tensors": tuple(NoiseTally(**tally) for tally in value["tensors"]),
            "tensor_cells": np.array(value["tensor_cells"]),
            "first_noise": np.array(value["first_noise"]),
        }
        return cls(**{**value, **read})
