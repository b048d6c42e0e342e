"""A picture of a model for catalogues: an image, what the network makes of it, the scores."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import nn

from federation.experiment import Experiment, RegressionTask, SubjectDP
from federation.export.about import About
from federation.export.examples import outputs_of
from federation.export.pictures import Shown, plane_of, shown
from federation.export.summaries import class_names, curves
from federation.run_record import FinishedRun, rounded_up

# Okabe and Ito's colours, which people who see fewer of them tell apart (jfly.uni-koeln.de/color).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
# Of sites: others than the classes' first ones, so that no site looks like a class.
_LINES = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#1d2733", "#999999")
_INK, _PALE, _BACKGROUND = "#1d2733", "#5b6875", "#e9edf1"
_MOST_NAMED = 6
_SCORES = {"dice": "Dice", "auc": "AUC", "mae": "Mean absolute error"}


def draw_cover(run: FinishedRun, about: About, network: nn.Module, path: Path) -> None:
    """Write a PNG of 1200 x 600 pixels: the format wants 2:1 and less than 500 kB.

    Raises:
        FederationError: The image that ``about`` names cannot be used.
    """
    figure = Figure(figsize=(12, 6), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    _heading(figure, run, about)
    experiment = run.record.experiment
    example = shown(experiment, about)
    # One at a time: the slices of a volume are many.
    given = np.concatenate([outputs_of(network, one[None]) for one in example.images])
    _panels(figure, experiment, example, given)
    _scores(figure, run)
    # No software and no date: the same run gives the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _heading(figure: Figure, run: FinishedRun, about: About) -> None:
    record = run.record
    title = about.title if len(about.title) <= 60 else f"{about.title[:59]}…"
    figure.text(0.035, 0.905, title, fontsize=22, weight="bold", color=_INK, parse_math=False)
    parts = [record.experiment.task.kind, f"{len(record.contributors)} sites", _privacy(run)]
    figure.text(0.035, 0.845, " · ".join(parts), fontsize=14, color=_PALE, parse_math=False)


def _privacy(run: FinishedRun) -> str:
    privacy = run.record.experiment.privacy
    epsilon = run.record.largest_epsilon
    if not isinstance(privacy, SubjectDP) or epsilon is None:
        return "no differential privacy"
    delta = f"{privacy.delta:g}".replace("e-0", "e-")
    return f"each subject protected: ε ≤ {rounded_up(epsilon, 2)}, δ = {delta}"


def _panels(
    figure: Figure, experiment: Experiment, example: Shown, given: npt.NDArray[np.float32]
) -> None:
    seen = _panel(figure, (0.035, 0.13, 0.26, 0.62), example.title)
    place = (0.31, 0.13, 0.26, 0.62)
    voxels = experiment.task.learns == "voxels"
    image = example.images[:, 0]
    classes = given.argmax(1) if voxels else np.zeros(image.shape, dtype=np.int64)
    plane, found = plane_of(image, classes)
    if example.turned:
        plane, found = plane[::-1, ::-1], found[::-1, ::-1]
    seen.imshow(plane, cmap="gray", interpolation="bilinear")
    if voxels:
        axes = _panel(figure, place, "Predicted classes")
        _segmentation(axes, experiment, found, None if example.is_noise else plane)
    elif isinstance(experiment.task, RegressionTask):
        value = float(given.mean()) * experiment.task.scale + experiment.task.offset
        axes = _panel(figure, place, "Predicted value")
        axes.text(0.5, 0.55, f"{value:.4g}", ha="center", fontsize=40, color=_COLOURS[0])
        axes.text(
            0.5,
            0.4,
            experiment.task.value,
            ha="center",
            fontsize=12,
            color=_PALE,
            parse_math=False,
        )
    else:
        _shares(_panel(figure, place, "Predicted shares"), experiment, given)


def _segmentation(
    axes: Any,
    experiment: Experiment,
    classes: npt.NDArray[np.int64],
    beneath: npt.NDArray[np.float32] | None,
) -> None:
    """Draw classes (y, x), over an image if there is one: its background is then left open."""
    names = class_names(experiment.task)
    colours = [_BACKGROUND, *(_COLOURS[i % len(_COLOURS)] for i in range(len(names) - 1))]
    drawn: npt.NDArray[Any] = classes
    if beneath is not None:
        axes.imshow(beneath, cmap="gray", interpolation="bilinear")
        drawn = np.ma.masked_equal(classes, 0)
    axes.imshow(
        drawn,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(names) - 0.5,
        interpolation="nearest",
        alpha=1.0 if beneath is None else 0.6,
    )
    pairs = list(zip(colours, names, strict=True))[:_MOST_NAMED]
    pairs = pairs if beneath is None else pairs[1:]
    patches = [Patch(facecolor=c, edgecolor=_PALE, linewidth=0.5, label=n) for c, n in pairs]
    axes.legend(
        handles=patches,
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.01),
        borderaxespad=0.2,
        ncols=3 if sum(len(name) for _, name in pairs[:3]) < 36 else 2,
        frameon=False,
        fontsize=10,
        labelcolor=_INK,
        handlelength=0.9,
        handletextpad=0.5,
        columnspacing=0.9,
    )


def _shares(axes: Any, experiment: Experiment, given: npt.NDArray[np.float32]) -> None:
    weights = np.exp(given - given.max(axis=1, keepdims=True))
    shares = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)[:_MOST_NAMED]
    names = class_names(experiment.task)[:_MOST_NAMED]
    axes.barh(range(len(shares)), shares, color=_COLOURS[: len(shares)], height=0.6)
    for number, (name, share) in enumerate(zip(names, shares, strict=True)):
        text = f"{name}  {share:.0%}"
        axes.text(0.02, number - 0.42, text, fontsize=12, color=_INK, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(len(shares) - 0.4, -0.8))


def _scores(figure: Figure, run: FinishedRun) -> None:
    told, task = curves(run.record), run.record.experiment.task
    axes = figure.add_axes((0.655, 0.17, 0.32, 0.58))
    axes.set_title(
        f"{_SCORES[task.score]} on public subjects",
        fontsize=14,
        color=_INK,
        loc="left",
        pad=10,
    )
    if not told:
        axes.text(0.5, 0.5, "no public subjects", ha="center", color=_PALE, fontsize=13)
        axes.set_axis_off()
        return
    for number, curve in enumerate(told):
        colour = _LINES[number % len(_LINES)]
        label = curve.site if number < _MOST_NAMED else None
        axes.plot(curve.rounds, curve.values, color=colour, lw=2.4, marker="o", ms=4.5, label=label)
    if not task.lower_is_better:
        axes.set_ylim(0, 1)
    axes.set_xlabel("round", fontsize=12, color=_PALE)
    axes.legend(frameon=False, fontsize=11, labelcolor=_INK, loc="best")
    axes.grid(axis="y", color=_BACKGROUND, lw=1.2)
    axes.tick_params(colors=_PALE, labelsize=11, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_BACKGROUND)


def _panel(figure: Figure, place: tuple[float, float, float, float], title: str) -> Any:
    axes = figure.add_axes(place)
    axes.set_title(title, fontsize=14, color=_INK, loc="left", pad=10)
    axes.set(xticks=[], yticks=[], anchor="NW")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes
