"""Rows of one network to a table, and how they stand to the aims."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from tests.benchmarks.private_methods import BASELINE, SHIPPED
from tests.benchmarks.private_networks import Case
from tests.benchmarks.tables import Section

MIB = 2**20
# Of the issue: how many times the time without privacy, by images a subject; and the memory.
TIME_AIMS = {1: 1.75, 4: 1.3, 8: 1.3}
MEMORY_AIMS = {4: 1.0, 8: 1.0}
COLUMNS = (
    "images",
    "a step by",
    "s a step",
    "ratio",
    "of it noise, update",
    "MiB",
    "ratio",
    "difference",
    "in float64",
)


@dataclass(frozen=True)
class Row:
    """What one method took on one number of images a subject.

    Args:
        seconds: Of the fastest step.
        noise_seconds: Of its second half: noise, scale, update.
        peak_bytes: Beyond what was in use before the network was made.
        difference: Of the clipped sum from the reference's, largest coordinate, in clip norms.
        exact_difference: The same when all is computed in float64.
        error: Why it could not be measured.
    """

    name: str
    num_images: int
    seconds: float | None = None
    noise_seconds: float | None = None
    peak_bytes: int | None = None
    difference: float | None = None
    exact_difference: float | None = None
    error: str | None = None

    def better_of(self, other: "Row | None") -> "Row":
        """Return the faster of two measurements, with the smaller memory of the two."""
        if other is None or other.error or self.error:
            return self
        faster = min(self, other, key=lambda row: row.seconds)
        return replace(
            faster,
            peak_bytes=min(self.peak_bytes, other.peak_bytes),
            difference=_largest(self.difference, other.difference),
            exact_difference=_largest(self.exact_difference, other.exact_difference),
        )


def _largest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def section(
    case: Case, rows: Sequence[Row], num_parameters: int, *, explained: bool = True
) -> Section:
    """Return one network's table.

    Args:
        explained: Say below it what the columns and rows mean.
    """
    return Section(
        title=f"{case.title}; {num_parameters:,} parameters",
        columns=COLUMNS,
        records=tuple(asdict(row) for row in rows),
        lines=tuple(_line(row, _baseline(row, rows)) for row in rows),
        notes=(*verdicts(rows), *(_NOTES if explained else ())),
    )


_NOTES = (
    "ratio: to the row without privacy, same images, one pass, same optimiser. Time: the fastest "
    "step. Memory: the peak beyond imports, so with network, images and optimiser.",
    "of it noise, update: ours draws cryptographic noise, four Gaussians a coordinate in float64 "
    "on the CPU; Opacus draws one in float32 from a Mersenne Twister or the GPU's generator.",
    "difference: of the clipped sum, largest coordinate, in clip norms, from a loop in float64 "
    "that clips by hand; half of the subjects are clipped. In float32 rounding may put a value on "
    "the other side of a ReLU's bend, and the gradient jumps; in float64 Opacus adds 1e-6 to "
    "each norm, and ours clips 1e-6 below.",
    "Opacus hooks and functorch give a gradient an image; each subject's mean was formed from "
    "them. Opacus ghost never forms them, so it clips each image: it protects images and not "
    "subjects (compared with a loop over images). Ghost norms exist for linear layers; its "
    "convolutions form each image's gradient, one layer at a time.",
)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return a line for each aim: MET or MISSED."""
    lines = []
    for row in rows:
        base = _baseline(row, rows)
        if row.name != SHIPPED or base is None or row.seconds is None:
            continue
        images = f"{SHIPPED}, {row.num_images} image{'s' if row.num_images > 1 else ''} a subject"
        if row.num_images in TIME_AIMS:
            aim = TIME_AIMS[row.num_images]
            lines.append(at_most(f"{images}: time", row.seconds / base.seconds, aim))
            before_noise = (row.seconds - row.noise_seconds) / base.seconds
            lines[-1] += f" ({before_noise:.2f}x before noise and update)"
        if row.num_images in MEMORY_AIMS:
            ratio = row.peak_bytes / max(base.peak_bytes, 1)
            lines.append(at_most(f"{images}: memory", ratio, MEMORY_AIMS[row.num_images]))
    return lines


def at_most(what: str, value: float, most: float) -> str:
    """Return one line.

    >>> at_most("time", 1.31, 1.3)
    'time 1.31x of non-private (aim 1.3x): MISSED'
    """
    state = "MET" if value <= most else "MISSED"
    return f"{what} {value:.2f}x of non-private (aim {most:g}x): {state}"


def _baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    same = (each for each in rows if each.num_images == row.num_images)
    return next((each for each in same if each.name == BASELINE and not each.error), None)


def _line(row: Row, base: Row | None) -> tuple[str, ...]:
    if row.seconds is None:
        return (str(row.num_images), row.name, f"failed: {row.error}", *("-",) * 6)
    return (
        str(row.num_images),
        row.name,
        f"{row.seconds:.4f}",
        f"{row.seconds / base.seconds:.2f}" if base else "-",
        f"{row.noise_seconds:.4f}",
        f"{row.peak_bytes / MIB:,.0f}",
        f"{row.peak_bytes / max(base.peak_bytes, 1):.2f}" if base else "-",
        *("-" if d is None else f"{d:.0e}" for d in (row.difference, row.exact_difference)),
    )
