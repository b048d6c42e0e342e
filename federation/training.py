"""Training at one site. No flwr here."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from data_adapters.cache import IN_PLACE
from data_adapters.manifest import Manifest
from data_adapters.prepare import Record, to_device
from data_adapters.subjects import SubjectDataset
from federation.algorithms.fedavg import client_step
from federation.experiment import (
    Adam,
    AnyLoss,
    ClassificationTask,
    CrossEntropy,
    Experiment,
    ForegroundDice,
)
from federation.messages import Weights
from federation.privacy.engine import SubjectOptimizer, subject_gradient
from federation.privacy.plan import PrivacyPlan
from federation.privacy.random import Randomness
from federation.privacy.sampling import PoissonSubjects
from federation.site import Part, Site
from models.build import build_network, load_weights, weights_of
from models.dp_safe import require_dp_safe
from models.errors import ModelError

OnFailure = Callable[[str], None]


def default_device() -> torch.device:
    """Return CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def initial_weights(experiment: Experiment) -> Weights:
    """Return the weights that every site starts from, drawn from the experiment's seed.

    Raises:
        ModelError: The network cannot be built, or may not be trained under privacy.
    """
    return weights_of(network_of(experiment))


def require_trainable(experiment: Experiment) -> None:
    """Take one step's forward and backward pass on noise, before anybody pays for it.

    Raises:
        ModelError: The network cannot be built, run on this input, or trained under privacy.
    """
    network = network_of(experiment).train()
    generator = torch.Generator().manual_seed(0)
    shape, channels = experiment.input.shape, experiment.input.num_channels
    labelled = () if isinstance(experiment.task, ClassificationTask) else shape
    try:
        for num_images in {1, experiment.input.cap}:
            images = torch.randn((num_images, channels, *shape), generator=generator)
            labels = torch.zeros((num_images, *labelled), dtype=torch.uint8)
            loss_per_image(network, [Record(images, labels)], experiment.loss).mean().backward()
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"This {experiment.model.kind} cannot be trained on images of {shape} voxels: "
            f"{' '.join(str(error).split())[:200]}. Use a larger shape or fewer strides."
        ) from error


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
    site: Site,
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
        learns="targets" if isinstance(task, ClassificationTask) else "voxels",
        meanings=task.meanings,
        in_place=site.in_place(part) if in_place else None,
        without=without,
        device=default_device(),
    )


def train_locally(  # noqa: PLR0913 - the last two are named
    experiment: Experiment,
    plan: PrivacyPlan,
    weights: Mapping[str, npt.NDArray[np.float32]],
    dataset: SubjectDataset,
    *,
    randomness: Randomness,
    on_failure: OnFailure,
) -> Weights:
    """Run one round's steps at one site and return the update (local minus global weights).

    Under a private plan everything in the return value has been noised; buffers and frozen
    parameters come back as exactly zero.

    Args:
        on_failure: Told, inside an ``except``, that one subject's gradient could not be computed.
            Under a private plan the subject then counts as gradient zero.

    Raises:
        ModelError: The weights do not fit the experiment's network.
    """
    network = network_of(experiment)
    load_weights(network, weights)
    network.to(default_device()).train()
    if plan.is_private:
        step = _private_stepper(experiment, plan, network, randomness, on_failure)
    else:
        step = _plain_stepper(experiment, plan, network, randomness)
    # No DataLoader: torch's and MONAI's reseed or share one global generator, which would draw the
    # same slices in each round and let one subject change another's.
    for subjects in PoissonSubjects(len(dataset), plan.sampling_rate, plan.steps, randomness):
        step(dataset, subjects)
    return _update(network, weights, only_trained=plan.is_private)


def network_of(experiment: Experiment) -> nn.Module:
    """Return the experiment's network with the weights that every site starts from.

    Raises:
        ModelError: It cannot be built, or may not be trained under privacy.
    """
    network = build_network(
        experiment.model, num_classes=len(experiment.task.classes), seed=experiment.seed
    )
    if experiment.privacy.kind == "subject_dp":
        require_dp_safe(network)
    return network


def _optimizer(experiment: Experiment, network: nn.Module) -> torch.optim.Optimizer:
    spec, parameters = experiment.optimizer, _trainable(network)
    if isinstance(spec, Adam):
        return torch.optim.Adam(parameters, lr=spec.learning_rate)
    return torch.optim.SGD(parameters, lr=spec.learning_rate)


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


Step = Callable[[SubjectDataset, Sequence[int]], None]


def _private_stepper(
    experiment: Experiment,
    plan: PrivacyPlan,
    network: nn.Module,
    randomness: Randomness,
    on_failure: OnFailure,
) -> Step:
    optimizer = SubjectOptimizer(_optimizer(experiment, network), plan=plan, randomness=randomness)
    parameters = _trainable(network)

    def gradient(dataset: SubjectDataset, subject: int) -> list[torch.Tensor]:
        record = dataset.record(subject, randomness.uniforms)
        loss = loss_per_image(network, [record], experiment.loss).mean()
        return subject_gradient(loss, parameters)

    def step(dataset: SubjectDataset, subjects: Sequence[int]) -> None:
        for subject in subjects:
            try:
                optimizer.add_subject(gradient(dataset, subject))
            except Exception:
                # A failure that depends on one subject would tell the hub that it was sampled,
                # at no cost: it counts as gradient zero, as NaN does, and only this site's log
                # knows. What fails for every subject is found before approval.
                on_failure("a subject's gradient, which counts as zero,")
        optimizer.release_step()

    return step


def _plain_stepper(
    experiment: Experiment, plan: PrivacyPlan, network: nn.Module, randomness: Randomness
) -> Step:
    optimizer = _optimizer(experiment, network)

    def step(dataset: SubjectDataset, subjects: Sequence[int]) -> None:
        optimizer.zero_grad(set_to_none=True)
        records = [dataset.record(subject, randomness.uniforms) for subject in subjects]
        if records:
            per_image = loss_per_image(network, records, experiment.loss)
            shares = torch.cat([torch.full((len(r.images),), 1 / len(r.images)) for r in records])
            (per_image * shares.to(per_image)).sum().div(plan.expected_batch).backward()
        optimizer.step()

    return step


def loss_per_image(network: nn.Module, records: Sequence[Record], loss: AnyLoss) -> torch.Tensor:
    """Return the loss of each image of the records, shape (images,).

    Dice (Milletari 2016, arXiv 1606.04797) is over one image at a time, never over a batch.
    """
    device = next(network.parameters()).device
    logits = network(torch.cat([to_device(r.images, device) for r in records]))
    labels = torch.cat([to_device(r.labels, device) for r in records])
    if isinstance(loss, CrossEntropy):
        return _cross_entropy(logits, labels)
    foreground_only = isinstance(loss, ForegroundDice)
    dice = DiceLoss(softmax=True, include_background=not foreground_only, reduction="none")
    targets = as_one_hot(labels, logits.shape[1])
    per_image = dice(logits, targets).flatten(1).mean(1)
    if foreground_only:
        return per_image
    return per_image + cross_entropy(logits, targets, reduction="none").flatten(1).mean(1)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return one value an image: classifiers have one to begin with, else the mean over voxels."""
    values = cross_entropy(logits, labels.long(), reduction="none")
    return values.reshape(len(values), -1).mean(1)


def as_one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Turn class indices (B, *shape) into float one-hot (B, C, *shape)."""
    return one_hot(labels.long(), num_classes).movedim(-1, 1).float()


def _update(
    network: nn.Module, weights: Mapping[str, npt.NDArray[np.float32]], *, only_trained: bool
) -> Weights:
    """Return trained minus received weights; what no noised step touched is exactly zero."""
    update = client_step(weights, weights_of(network))
    if only_trained:
        stepped = {name for name, p in network.named_parameters() if p.requires_grad}
        for name in update.keys() - stepped:
            update[name] = np.zeros_like(update[name])
    return update


def predict(
    experiment: Experiment, weights: Mapping[str, npt.NDArray[np.float32]], images: torch.Tensor
) -> npt.NDArray[np.int64]:
    """Return class indices for normalised images (B, channels, *shape).

    They are of voxels, (B, *shape), or, from classifiers, of images, (B,).
    """
    network = network_of(experiment)
    load_weights(network, weights)
    with torch.no_grad():
        classes: npt.NDArray[np.int64] = network.eval()(images).argmax(1).numpy()
    return classes
