"""Losses of each image; a subject's loss is the mean over its images."""

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, smooth_l1_loss

from data_adapters.prepare import Record, to_device
from federation.experiment import (
    AnyLoss,
    CrossEntropy,
    ForegroundDice,
    MeanSquaredError,
    SmoothL1,
)


def loss_per_image(network: nn.Module, records: Sequence[Record], loss: AnyLoss) -> torch.Tensor:
    """Return the loss of each image of the records, shape (images,).

    Dice (Milletari 2016, arXiv 1606.04797) is over one image at a time, never over a batch.
    """
    device = next(network.parameters()).device
    if isinstance(loss, MeanSquaredError | SmoothL1):
        return _of_values(network, records, loss, device)
    logits = network(_together([r.images for r in records], device))
    labels = _together([r.labels for r in records], device)
    if isinstance(loss, CrossEntropy):
        return _cross_entropy(logits, labels)
    foreground_only = isinstance(loss, ForegroundDice)
    dice = DiceLoss(softmax=True, include_background=not foreground_only, reduction="none")
    targets = as_one_hot(labels, logits.shape[1])
    per_image: torch.Tensor = dice(logits, targets).flatten(1).mean(1)
    if foreground_only:
        return per_image
    return per_image + cross_entropy(logits, targets, reduction="none").flatten(1).mean(1)


def _of_values(
    network: nn.Module,
    records: Sequence[Record],
    loss: MeanSquaredError | SmoothL1,
    device: torch.device,
) -> torch.Tensor:
    found = network(_together([r.images for r in records], device)).squeeze(1)
    values = _together([r.labels for r in records], device)
    measure = mse_loss if isinstance(loss, MeanSquaredError) else smooth_l1_loss
    return measure(found, values, reduction="none")


def as_one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Turn class indices (B, *shape) into float one-hot (B, C, *shape).

    By comparing: ``torch.nn.functional.one_hot`` scatters, which ``torch.func.vmap`` refuses.
    """
    classes = torch.arange(num_classes, device=labels.device)
    return (labels.unsqueeze(1) == classes.view(-1, *[1] * (labels.ndim - 1))).float()


def _together(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    moved = [to_device(tensor, device) for tensor in tensors]
    return moved[0] if len(moved) == 1 else torch.cat(moved)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return one value an image: classifiers have one to begin with, else the mean over voxels."""
    values = cross_entropy(logits, labels.long(), reduction="none")
    return values.reshape(len(values), -1).mean(1)
