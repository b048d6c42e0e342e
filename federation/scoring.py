"""Scores on subjects that a site declares public. Protected data is never scored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_roc_auc
from torch import nn

from data_adapters.prepare import Record, to_device
from data_adapters.subjects import SubjectDataset
from federation.experiment import (
    ClassificationTask,
    Experiment,
    RegressionTask,
    SegmentationTask,
)
from federation.training import as_one_hot, default_device, network_of
from models.build import load_weights

Floats = npt.NDArray[np.float64]


@torch.no_grad()
def score(
    experiment: Experiment,
    weights: Mapping[str, npt.NDArray[np.float32]],
    public: SubjectDataset,
) -> dict[str, float]:
    """Return how well the weights do on public subjects; ``num_subjects`` says how many.

    Segmentation: mean Dice, ``dice`` and ``dice/<class>`` without background. Each scan is scored
    as one volume, whether it is seen in slices, whole or in patches (of very large scans, in as
    many patches as ``patches.tiles`` looks at); a subject's Dice is the mean over its scans, and
    a class that is absent from a scan's labels is left out of that scan's mean.

    Classification: ``accuracy`` and ``auc`` over scans, each by its mean probabilities over its
    images. With more than two classes, ``auc`` is the mean over classes of one against the rest.

    Regression: ``mae``, the mean absolute error over scans in the unit of the values, each by its
    mean output over its images.
    """
    network = network_of(experiment)
    load_weights(network, weights)
    network.to(default_device()).eval()
    task = experiment.task
    if isinstance(task, RegressionTask):
        scores = _errors(task, network, public)
    elif isinstance(task, ClassificationTask):
        scores = _classified(network, public)
    else:
        scores = _dice(task, network, public)
    return {**scores, "num_subjects": float(len(public))}


def _dice(task: SegmentationTask, network: nn.Module, public: SubjectDataset) -> dict[str, float]:
    subjects = [_subject_dice(network, public, index) for index in range(len(public))]
    names = [task.shown(name) for name in task.classes[1:]]
    named = zip(names, _mean_of_present(subjects), strict=True)
    scores = {f"dice/{name}": float(dice) for name, dice in named if not np.isnan(dice)}
    return {"dice": float(np.mean(list(scores.values()))), **scores} if scores else {}


def _mean_of_present(rows: Sequence[Floats]) -> Floats:
    """Return the mean of each column over its entries that are not NaN; NaN where there is none."""
    table = np.stack(rows)
    present = ~np.isnan(table)
    counts = present.sum(0)
    sums = np.where(present, table, 0.0).sum(0)
    means: Floats = np.full(table.shape[1], np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def _subject_dice(network: nn.Module, public: SubjectDataset, subject: int) -> Floats:
    return _mean_of_present([_scan_dice(network, pieces) for pieces in public.pieces(subject)])


def _scan_dice(network: nn.Module, pieces: Iterable[Record]) -> Floats:
    """Return 2|A and B| / (|A| + |B|) of each class but the background, over all of one scan.

    NaN for a class that the labels do not show.
    """
    both, found, there = np.sum([_counts(network, record) for record in pieces], axis=0)
    dice: Floats = np.full(len(there), np.nan)
    np.divide(2 * both, found + there, out=dice, where=there > 0)
    return dice


def _counts(network: nn.Module, record: Record) -> Floats:
    """Return voxels of each class (3, classes - 1): found and there, found, there."""
    logits = network(to_device(record.images, next(network.parameters()).device))
    predicted = as_one_hot(logits.argmax(1).cpu(), logits.shape[1])
    truth = as_one_hot(record.labels.cpu(), logits.shape[1])
    if record.counted is not None:
        counted = record.counted.cpu()[:, None]
        predicted, truth = predicted * counted, truth * counted
    sums = (predicted * truth, predicted, truth)
    per_class = [part.double().transpose(0, 1).flatten(1).sum(1)[1:] for part in sums]
    counts: Floats = torch.stack(per_class).numpy()
    return counts


def _classified(network: nn.Module, public: SubjectDataset) -> dict[str, float]:
    subjects = (_probabilities(network, public, index) for index in range(len(public)))
    found, labels = zip(*chain.from_iterable(subjects), strict=True)
    probabilities, truth = torch.stack(found), torch.stack(labels)
    accuracy = (probabilities.argmax(1) == truth).double().mean()
    return {"accuracy": float(accuracy), **_auc(probabilities, truth)}


def _probabilities(
    network: nn.Module, public: SubjectDataset, subject: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield, for each scan, the mean probability of each class over its images, and its class."""
    device = next(network.parameters()).device
    for pieces in public.pieces(subject):
        images, labels = [], []
        for record in pieces:
            images.append(network(to_device(record.images, device)).softmax(1).cpu())
            labels.append(record.labels.cpu())
        yield torch.cat(images).double().mean(0), labels[0][0].long()


def _errors(task: RegressionTask, network: nn.Module, public: SubjectDataset) -> dict[str, float]:
    subjects = (_outputs(network, public, index) for index in range(len(public)))
    errors = [abs(found - value) for found, value in chain.from_iterable(subjects)]
    return {"mae": float(np.mean(errors)) * task.scale} if errors else {}


def _outputs(
    network: nn.Module, public: SubjectDataset, subject: int
) -> Iterator[tuple[float, float]]:
    """Yield, for each scan, the mean output over its images, and its value; both scaled."""
    device = next(network.parameters()).device
    for pieces in public.pieces(subject):
        outputs, values = [], []
        for record in pieces:
            outputs.append(network(to_device(record.images, device)).squeeze(1).cpu())
            values.append(record.labels.cpu())
        yield float(torch.cat(outputs).double().mean()), float(values[0][0])


def _auc(probabilities: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Return the area under the ROC curve, nothing where only one class is there."""
    num_classes = probabilities.shape[1]
    against_rest = [1] if num_classes == 2 else range(num_classes)
    areas = [
        float(compute_roc_auc(probabilities[:, index], (truth == index).long()))
        for index in against_rest
        if 0 < int((truth == index).sum()) < len(truth)
    ]
    return {"auc": float(np.mean(areas))} if areas else {}
