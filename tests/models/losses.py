"""Losses as training takes them: one number an image."""

import torch
from monai.losses import DiceLoss
from torch.nn.functional import cross_entropy, one_hot

from models.synthetic import Declared


def together(records):
    return torch.cat([r.images for r in records]), torch.cat([r.labels for r in records]).long()


def cross_entropies(network, records):
    images, labels = together(records)
    values = cross_entropy(network(images), labels, reduction="none")
    return values.reshape(len(values), -1).mean(1)


def dice(*, batch: bool):
    """Soft Dice of each image; of the whole batch, given to each image, if ``batch``."""

    def losses(network, records):
        images, labels = together(records)
        logits = network(images)
        targets = one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits)
        values = DiceLoss(softmax=True, reduction="none", batch=batch)(logits, targets)
        return values.mean().expand(len(images)) if batch else values.flatten(1).mean(1)

    return losses


def declared(*shape, classifies=False, num_channels=1, num_classes=2, cap=2):
    return Declared(shape or (8, 8), num_channels, num_classes, classifies, cap)
