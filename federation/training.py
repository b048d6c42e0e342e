"""Training at one site. No flwr here."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data_adapters.cache import IN_PLACE
from data_adapters.manifest import Manifest
from data_adapters.prepare import Record, ValueScale
from data_adapters.subjects import SubjectDataset
from federation.errors import OnFailure
from federation.experiment import (
    AnyTask,
    Experiment,
    RegressionTask,
    SubjectDP,
    Trainable,
)
from federation.losses import as_one_hot, loss_per_image
from federation.messages import Weights
from federation.privacy.gradients import Losses
from federation.privacy.plan import PrivacyPlan
from federation.privacy.random import Randomness
from federation.privacy.sampling import PoissonSubjects
from federation.privacy.self_audit import SelfAudit
from federation.release import release_update, unprotected_update
from federation.site import Part, Site
from federation.site_data import SiteData
from federation.starting import read_start
from federation.steps import LocalWork, example_record, stepper
from models.behaviour import check_behaviour
from models.build import build_network, load_weights, weights_of
from models.dp_safe import require_dp_safe
from models.errors import ModelError
from models.synthetic import Declared

__all__ = [
    "as_one_hot",
    "default_device",
    "freeze_all_but",
    "initial_weights",
    "loss_per_image",
    "network_of",
    "open_dataset",
    "predict",
    "require_data_fits",
    "require_fitting_weights",
    "require_trainable",
    "train_locally",
    "value_scale",
]


def default_device() -> torch.device:
    """Return CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def initial_weights(experiment: Experiment, folder: Path | None = None) -> Weights:
    """Return the weights that every site starts from: public ones, or drawn from the seed.

    Args:
        folder: Where the experiment's file is, and public weights beside it.

    Raises:
        ModelError: The network cannot be built, or may not be trained under privacy, or public
            weights do not fit it. FederationError: See ``starting.read_start``.
    """
    network, start = network_of(experiment), read_start(experiment, folder)
    if start is not None:
        load_weights(network, start)
    return weights_of(network)


# Digests of experiments that were tried in this process and passed.
_TRAINABLE: set[str] = set()


def require_trainable(experiment: Experiment) -> None:
    """Try one step on made-up subjects, before anybody pays for it.

    Under privacy it also tries whether one subject reaches another's gradient: see
    ``models.behaviour``.

    Raises:
        ModelError: The network cannot be built, run on this input, or trained under privacy.
    """
    if experiment.digest() in _TRAINABLE:
        return
    network = network_of(experiment).train()
    shape, cap = experiment.input.shape, experiment.input.cap
    losses = partial(loss_per_image, loss=experiment.loss)
    try:
        for num_images in {1, cap * experiment.augment.copies}:
            losses(network, [example_record(experiment, num_images)]).mean().backward()
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"This {experiment.model.kind} cannot be trained on images of {shape} voxels: "
            f"{' '.join(str(error).split())[:200]}. Use a larger shape or fewer strides."
        ) from error
    if isinstance(experiment.privacy, SubjectDP):
        _require_apart(experiment, losses, experiment.privacy.clip_norm)
    _TRAINABLE.add(experiment.digest())


def _require_apart(experiment: Experiment, losses: Losses, clip_norm: float) -> None:
    inputs = experiment.input
    declared = Declared(
        inputs.shape,
        inputs.num_channels,
        experiment.task.num_outputs,
        experiment.model.classifies,
        inputs.cap,
        values=experiment.task.learns == "values",
    )
    network = network_of(experiment)
    check_behaviour(network, losses, record=Record, declared=declared, clip_norm=clip_norm)


def require_fitting_weights(
    experiment: Experiment, weights: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Check names and shapes against the experiment's network, before anything is charged.

    Raises:
        ModelError: They differ.
    """
    load_weights(network_of(experiment), weights)


def require_data_fits(experiment: Experiment, site: Site) -> None:
    """Check that every subject of a site can be prepared as the experiment asks.

    Raises:
        DataError: Says which classes or which grid, and what to change.
    """
    for part in site.parts:
        dataset = open_dataset(experiment, site, part)
        for index in range(len(dataset)):
            dataset.check(index)


def open_dataset(
    experiment: Experiment,
    site: SiteData,
    part: Part,
    *,
    manifest: Manifest | None = None,
    without: Collection[str] | None = None,
) -> SubjectDataset:
    """Return one part of a site's data as the experiment sees it, without those left out.

    Args:
        manifest: Of that part, if it was read already.
        without: Who is left out, if that was looked at already.

    Raises:
        DataError: The classes or channels differ. FederationError: Nothing was ingested yet.
    """
    manifest, task = manifest or site.manifest(part), experiment.task
    if without is None:
        without = site.left_out(experiment.data_use, part, manifest)
    in_place = any(scan.path.endswith(IN_PLACE) for scan in manifest.scans)
    return SubjectDataset(
        site.cache(part),
        manifest,
        experiment.input,
        task.classes,
        learns=task.learns,
        values=value_scale(task),
        meanings=None if isinstance(task, RegressionTask) else task.meanings,
        in_place=site.in_place(part) if in_place else None,
        without=without,
        device=default_device(),
    )


def value_scale(task: AnyTask) -> ValueScale:
    """Return how a table's values become what the network learns."""
    if isinstance(task, RegressionTask):
        return ValueScale(task.offset, task.scale)
    return ValueScale()


def train_locally(  # noqa: PLR0913 - the last two are named
    experiment: Experiment,
    plan: PrivacyPlan,
    weights: Mapping[str, npt.NDArray[np.float32]],
    dataset: SubjectDataset,
    *,
    randomness: Randomness,
    on_failure: OnFailure,
    audit: SelfAudit | None = None,
    before_step: Callable[[], None] = lambda: None,
) -> Weights:
    """Run one round's steps at one site and return the update (local minus global weights).

    Under a private plan everything in the return value has been noised; buffers and frozen
    parameters come back as exactly zero.

    Args:
        on_failure: Told, inside an ``except``, that one subject's gradient could not be computed.
            Under a private plan the subject then counts as gradient zero.
        audit: Follows the steps of a private plan with canaries, which change nothing of the
            real parameters' sums.
        before_step: Raises to stop the round.

    Raises:
        ModelError: The weights do not fit the experiment's network.
        ReleaseError: What was noised may not leave: it is not finite, or has another shape.
    """
    network = network_of(experiment)
    load_weights(network, weights)
    network.to(default_device()).train()
    work = LocalWork(experiment, plan, network, randomness, on_failure, audit)
    step, stepped = stepper(work), work.parameters
    sampled_from = len(dataset) if audit is None else audit.num_sampled_from
    # No DataLoader: torch's and MONAI's reseed or share one global generator, which would draw the
    # same slices in each round and let one subject change another's.
    for sampled in PoissonSubjects(sampled_from, plan.sampling_rate, plan.steps, randomness):
        before_step()
        step(dataset, sampled)
    if not plan.is_private:
        return unprotected_update(network, weights)
    if audit is not None:
        audit.test_noise()
    return release_update(network, weights, stepped=stepped, on_failure=on_failure)


def network_of(experiment: Experiment) -> nn.Module:
    """Return the experiment's network with the weights that every site starts from.

    Raises:
        ModelError: It cannot be built, or may not be trained under privacy.
    """
    network = build_network(
        experiment.model, num_classes=experiment.task.num_outputs, seed=experiment.seed
    )
    if experiment.privacy.kind == "subject_dp":
        require_dp_safe(network)
    freeze_all_but(network, experiment.trainable)
    return network


def _head(last: str) -> str:
    """Return how the names of the last layer begin; its weights may be computed from others.

    >>> _head("out.1.bias"), _head("out.1.parametrizations.weight.original")
    ('out.1.', 'out.1.')
    """
    layer, is_computed, _ = last.partition(".parametrizations.")
    return f"{layer if is_computed else last.rpartition('.')[0]}."


def freeze_all_but(network: nn.Module, trainable: Trainable) -> None:
    """Leave the gradient to some parameters; the others come back as exactly zero update.

    Args:
        trainable: ``all``; ``head``, the last layer that has weights; or how names begin.

    Raises:
        ModelError: A beginning that no parameter's name has.
    """
    if trainable == "all":
        return
    names = [name for name, _ in network.named_parameters()]
    starts = (_head(names[-1]),) if trainable == "head" else trainable
    for start in starts:
        if not any(name.startswith(start) for name in names):
            raise ModelError(
                f"trainable names {start!r}, with which no parameter of this network begins; "
                f"the first is {names[0]!r}, the last {names[-1]!r}. Use head, all, or the "
                "beginning of a name."
            )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(starts))


def predict(
    experiment: Experiment, weights: Mapping[str, npt.NDArray[np.float32]], images: torch.Tensor
) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    """Return class indices for normalised images (B, channels, *shape), or values.

    Classes are of voxels, (B, *shape), or, from classifiers, of images, (B,). Values, (B,), are in
    the unit of the task's ``value``.
    """
    network, task = network_of(experiment), experiment.task
    load_weights(network, weights)
    with torch.no_grad():
        found = network.eval()(images)
    if isinstance(task, RegressionTask):
        values: npt.NDArray[np.float64] = found.squeeze(1).double().numpy()
        return values * task.scale + task.offset
    classes: npt.NDArray[np.int64] = found.argmax(1).numpy()
    return classes
