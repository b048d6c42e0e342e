"""``configs/inference.json`` of a MONAI bundle: from an image file to a result file.

``monai.bundle`` runs whatever stands in such a file: ``_target_`` names what it calls, and text
that starts with ``$`` is Python. So everything here is MONAI's or torch's, nothing of a run's or a
person's text gets in, and ``EXPRESSIONS`` is every expression there may be.
"""

from typing import Any

from data_adapters.inputs import AnyInput, PatchInput, SliceInput
from federation.errors import FederationError
from federation.experiment import AnyTask, Experiment, RegressionTask

Config = dict[str, Any]

# MONAI keeps spacings that differ by less than 1e-3 mm (its AFFINE_TOL), so that it would leave
# images of finer grids than this as they are, and say nothing.
FINEST_RESAMPLED_MM = 0.25
# Superior, anterior, right: the order of axes in training.
_AXES = {"axcodes": "SAR", "labels": [["L", "R"], ["P", "A"], ["I", "S"]]}

_WINDOWS = "$lambda image: @inferer(image[None], @network)[0]"
EXPRESSIONS = (
    "$@bundle_root + '/images'",
    "$@bundle_root + '/eval'",
    "$@bundle_root + '/models/model.pt'",
    "$@dataset_dir + '/image.nii.gz'",
    "$sum(1 for _ in @results)",
    _WINDOWS,
)


def inference_config(experiment: Experiment, network: Config) -> Config:
    """Return the whole file.

    Args:
        network: Entries that define ``network_def``.

    Raises:
        FederationError: The experiment classifies patches, which MONAI has no inferer for.
    """
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "image": "$@dataset_dir + '/image.nii.gz'",
        "datalist": [{"image": "@image"}],
        "skip_logits": True,
        "device": {"_target_": "torch.device", "device": "cpu"},
        **network,
        "network": {
            "_target_": "torch.nn.Module.requires_grad_",
            "self": {"_target_": "torch.nn.Module.eval", "self": _on_device()},
            "requires_grad": False,
        },
        "weights": {
            "_target_": "torch.load",
            "f": "$@bundle_root + '/models/model.pt'",
            "map_location": "@device",
            "weights_only": True,
        },
        "load_weights": {
            "_target_": "torch.nn.Module.load_state_dict",
            "self": "@network",
            "state_dict": "@weights",
            "strict": True,
        },
        "preprocessing": _compose(_preprocessing(experiment.input)),
        **_prediction(experiment),
        "dataset": {
            "_target_": "monai.data.Dataset",
            "data": "@datalist",
            "transform": "@preprocessing",
        },
        "results": {
            "_target_": "monai.data.Dataset",
            "data": "@dataset",
            "transform": _compose(["@prediction", "@postprocessing"]),
        },
        "run": ["@load_weights", "$sum(1 for _ in @results)"],
    }


def resamples(inputs: AnyInput) -> bool:
    """Tell whether the bundle brings images to the spacing; if not they must come at it."""
    return min(_spacing(inputs)[1:]) >= FINEST_RESAMPLED_MM


def _on_device() -> Config:
    return {"_target_": "torch.nn.Module.to", "self": "@network_def", "device": "@device"}


def _compose(transforms: list[Any]) -> Config:
    return {"_target_": "monai.transforms.Compose", "transforms": transforms}


def _transform(name: str, keys: str, **arguments: Any) -> Config:
    return {"_target_": f"monai.transforms.{name}", "keys": keys, **arguments}


def _spacing(inputs: AnyInput) -> tuple[float, ...]:
    """Return mm along z, y, x; -1 along z is what the file has."""
    if isinstance(inputs, SliceInput):
        return (-1.0, *inputs.spacing_mm_yx)
    z, y, x = inputs.spacing_mm_zyx
    return (z if inputs.spatial_dims == 3 else -1.0, y, x)


def _preprocessing(inputs: AnyInput) -> list[Config]:
    """Return what ``data_adapters.prepare`` does, as MONAI's transforms, in its order."""
    scaled = _transform("NormalizeIntensityd", "image", channel_wise=True)
    spaced = _transform(
        "Spacingd", "image", pixdim=_spacing(inputs), mode="bilinear", padding_mode="border"
    )
    at_spacing = [spaced] if resamples(inputs) else []
    # Patches are scaled by the statistics of the scan as stored, whole scans once resampled.
    patches = isinstance(inputs, PatchInput)
    values = [scaled, *at_spacing] if patches else [*at_spacing, scaled]
    return [
        _transform("LoadImaged", "image", reader="NibabelReader", image_only=False),
        _transform("EnsureChannelFirstd", "image"),
        _transform("Orientationd", "image", **_AXES),
        *values,
        *([] if patches else [_on_grid(inputs)]),
        _transform("EnsureTyped", "image", device="@device"),
    ]


def _on_grid(inputs: AnyInput) -> Config:
    depth = [-1] if isinstance(inputs, SliceInput) else []
    return _transform("ResizeWithPadOrCropd", "image", spatial_size=[*depth, *inputs.shape])


def _prediction(experiment: Experiment) -> Config:
    """Return the entries ``prediction`` and ``postprocessing``, and ``inferer`` where windows are.

    They take an item with ``image`` and leave files.
    """
    if experiment.task.learns == "voxels":
        return _segmentation(experiment.input)
    return _of_whole_images(experiment)


def _segmentation(inputs: AnyInput) -> Config:
    return {
        "inferer": _inferer(inputs),
        "prediction": _compose(
            [
                _transform("CopyItemsd", "image", names="logits"),
                _transform("Lambdad", "logits", func=_WINDOWS),
                _transform("CopyItemsd", "logits", names="pred"),
            ]
        ),
        "postprocessing": _compose(
            [
                {"_disabled_": "@skip_logits", **_save("logits", "float32")},
                _transform("AsDiscreted", "pred", argmax=True),
                _transform(
                    "Invertd",
                    "pred",
                    transform="@preprocessing",
                    orig_keys="image",
                    nearest_interp=True,
                    to_tensor=True,
                ),
                _save("pred", "uint8", postfix="seg"),
            ]
        ),
    }


def _inferer(inputs: AnyInput) -> Config:
    """Return what moves the network over a scan: one window at a time, so that batches are one."""
    overlap = 0.25 if isinstance(inputs, PatchInput) else 0.0
    plane = inputs.spatial_dims == 2
    return {
        "_target_": f"monai.inferers.{'SliceInferer' if plane else 'SlidingWindowInferer'}",
        "roi_size": list(inputs.shape),
        "sw_batch_size": 1,
        "overlap": overlap,
        **({"spatial_dim": 0} if plane else {}),
    }


def _save(key: str, dtype: str, *, postfix: str | None = None) -> Config:
    return _transform(
        "SaveImaged",
        key,
        output_dir="@output_dir",
        output_postfix=postfix or key,
        output_dtype=dtype,
        resample=False,
        separate_folder=False,
        print_log=False,
    )


def _of_whole_images(experiment: Experiment) -> Config:
    """Return entries that write a CSV: of each file the mean over its images, as scores have it."""
    if isinstance(experiment.input, PatchInput):
        raise FederationError(
            f"A MONAI bundle cannot tell a {experiment.task.kind} of patches: MONAI has no inferer "
            "that averages over them. Use --format onnx, or input kind slices or volume."
        )
    return {
        "prediction": _compose(
            [
                _transform("CopyItemsd", "image", names="pred"),
                _transform("EnsureTyped", "pred", track_meta=False),
                _images_first(experiment.input),
                _transform("Lambdad", "pred", func="@network"),
            ]
        ),
        "postprocessing": _compose(
            [
                *_as_stated(experiment.task),
                _transform(
                    "SaveClassificationd",
                    "pred",
                    meta_keys="image_meta_dict",
                    output_dir="@output_dir",
                    filename="predictions.csv",
                ),
            ]
        ),
    }


def _images_first(inputs: AnyInput) -> Config:
    """Return the transform to a batch: of a scan's slices, or of the scan alone."""
    if isinstance(inputs, SliceInput):
        return _on_prediction("movedim", source=1, destination=0)
    return _on_prediction("unsqueeze", dim=0)


def _as_stated(task: AnyTask) -> list[Config]:
    """Return transforms from outputs (images, outputs) to mean probabilities or the mean value."""
    mean = [
        _on_prediction("Tensor.double"),
        _on_prediction("mean", dim=0),
    ]
    if not isinstance(task, RegressionTask):
        return [_on_prediction("softmax", dim=1), *mean]
    return [
        *mean,
        _on_prediction("mul", other=task.scale),
        _on_prediction("add", other=task.offset),
    ]


def _on_prediction(function: str, **arguments: Any) -> Config:
    """Return the transform that calls a function of torch."""
    called = {"_target_": f"torch.{function}", "_mode_": "callable", **arguments}
    return _transform("Lambdad", "pred", func=called)
