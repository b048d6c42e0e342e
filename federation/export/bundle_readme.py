"""The texts of a MONAI bundle: ``docs/README.md``, and the licences of the model and the data."""

from data_adapters.inputs import AnyInput, PatchInput, SliceInput
from federation.experiment import AnyTask, Experiment, RegressionTask, SubjectDP
from federation.export.about import About
from federation.export.bundle_config import FINEST_RESAMPLED_MM, resamples
from federation.export.summaries import class_names
from federation.run_record import FinishedRun, RunRecord, rounded_up

_README = """\
# {title}

{description}

## Run it

MONAI {monai}, torch and nibabel are enough; Cohortium is not needed.

```python
from monai.bundle import run
run(config_file="configs/inference.json", bundle_root=".",
    image="scan.nii.gz", output_dir="eval")
```

Where the package `fire` is installed too, MONAI has it as a command, of the same names:

```sh
python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
    --image scan.nii.gz --output_dir eval
```

Several scans: write `[{{"image": "a.nii.gz"}}, {{"image": "b.nii.gz"}}]` into a JSON file and give
`datalist="%list.json"` instead of `image`. On a GPU:
`device={{"_target_": "torch.device", "device": "cuda"}}`; results there differ in the last digits,
which was not measured. There is no `evaluator` entry, which MONAI's
engines need pytorch-ignite for: what asks a bundle for one will not find it.

## What it expects

{expects}

## What it writes

{writes}

## Where it differs from training

{differs}

## Privacy

{privacy}

## Intended use

{intended_use}

## Limits

{limits}

## Where it comes from

Run `{run}`, finished {finished}, experiment `{digest}`. Model `{model}`.
`configs/metadata.json` has the newest head of each site's ledger, and what each committed to as its
data set.

## Authors and licence

{authors}. Licence: {licence}. Of the data: `docs/data_license.txt`.
{cite}"""


def readme(run: FinishedRun, about: About) -> str:
    """Return the text in Markdown."""
    record = run.record
    experiment = record.experiment
    return _README.format(
        title=about.title,
        description=about.description,
        monai=record.versions.get("monai", "1.6"),
        expects=_list(_expects(experiment)),
        writes=_writes(experiment),
        differs=_list(_differs(experiment.input)),
        privacy=privacy_statement(record),
        intended_use=about.intended_use,
        limits=about.limits,
        run=record.run,
        finished=record.finished,
        digest=experiment.digest(),
        model=record.model_digest,
        authors=", ".join(author.name for author in about.authors),
        licence=about.licence,
        cite="".join(f"\nCite: {one.line}\n" for one in about.cite),
    )


def licence(about: About) -> str:
    """Return a file that names the model's licence."""
    names = ", ".join(author.name for author in about.authors)
    return (
        f"SPDX-License-Identifier: {about.licence}\n"
        f"SPDX-FileCopyrightText: {names}\n\n"
        f"The model in this folder is licensed as above; the text of that licence is at\n"
        f"https://spdx.org/licenses/{about.licence}.html\n"
    )


def data_licences(run: FinishedRun) -> str:
    """Return the licence of each site's data, as the site states it. No data is in the bundle."""
    lines = [
        f"{s.site}: {s.dataset}: {s.licence}; data use (DUO): {s.data_use}\n"
        for s in run.record.contributors
    ]
    return "No image is in this bundle. Its model was trained on:\n" + "".join(lines)


def privacy_statement(record: RunRecord) -> str:
    """Return what was promised to each site's subjects, in plain words."""
    plan = record.experiment.privacy
    if not isinstance(plan, SubjectDP):
        return "None: this model was trained without differential privacy (epsilon is infinite)."
    epsilons = ", ".join(
        f"{site}: {rounded_up(value, 4)}" for site, value in sorted(record.epsilon.items())
    )
    return (
        f"Differentially private for each {plan.unit} with all of its images (neighbouring data "
        f"sets differ by one {plan.unit} added or removed), delta {plan.delta:g}, noise multiplier "
        f"{record.noise_multiplier:g}, clipping at {plan.clip_norm:g}. Epsilon of this run, by "
        f"site: {epsilons}. A site may have spent more on other runs; its ledger says."
    )


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _expects(experiment: Experiment) -> list[str]:
    inputs = experiment.input
    names = ", ".join(inputs.channels or ())
    several = (
        f"A list of {inputs.num_channels} files for `image`, or one file with channels last, in "
        f"this order: {names}."
    )
    first = (
        "One NIfTI file for `image`, a scan in the units and with the affine that it came with. "
        "A plane (radiograph, 2-D microscopy) is a volume of one slice: array (x, y, 1), with its "
        "rows along the second axis and an affine of positive spacings."
    )
    return [
        first,
        *([several] if inputs.num_channels > 1 else []),
        "Axes are turned to superior, anterior, right.",
        _spacing(inputs),
        _values(inputs),
        _grid(inputs),
    ]


def _spacing(inputs: AnyInput) -> str:
    if isinstance(inputs, SliceInput):
        steps = f"{_by(inputs.spacing_mm_yx)} mm in the plane (y, x); along z as it is"
    else:
        steps = f"{_by(inputs.spacing_mm_zyx)} mm (z, y, x)"
    if resamples(inputs):
        return f"Resampled, linearly, to {steps}."
    return (
        f"It must come at {steps}: nothing is resampled, since MONAI leaves grids finer than "
        f"{FINEST_RESAMPLED_MM:g} mm as they are."
    )


def _values(inputs: AnyInput) -> str:
    when = "as stored" if isinstance(inputs, PatchInput) else "once it is resampled"
    return (
        "Each channel has its mean taken off and is divided by its standard deviation, both over "
        f"all voxels of the scan {when}."
    )


def _grid(inputs: AnyInput) -> str:
    size = _by(inputs.shape)
    if isinstance(inputs, PatchInput):
        return f"The network then sees windows of {size} voxels that overlap by a quarter."
    one = "each slice" if isinstance(inputs, SliceInput) else "the scan"
    return f"Then {one} is cropped at its centre, or padded with zero, to {size} voxels."


def _by(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _writes(experiment: Experiment) -> str:
    task = experiment.task
    if task.learns == "voxels":
        return (
            "`<name>_seg.nii.gz`: on the scan's own grid, each voxel's class as a number:\n"
            f"{_classes(task)}. Voxels outside the grid that the network sees are 0. With "
            "`skip_logits=False` also `<name>_logits.nii.gz`: what the network gives, float32, on "
            "its own grid."
        )
    several = "" if experiment.input.kind == "volume" else ", the mean over its slices"
    if isinstance(task, RegressionTask):
        return f"`predictions.csv`: of each file its name and {task.value}{several}."
    return (
        "`predictions.csv`: of each file its name and the probability of each class"
        f"{several}, in this order:\n{_classes(task)}."
    )


def _classes(task: AnyTask) -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(class_names(task)))


def _differs(inputs: AnyInput) -> list[str]:
    deviation = (
        "MONAI divides by a standard deviation with N below it, training had N - 1: values differ "
        "by a factor of about 1 - 1/(2N) for a scan of N voxels. A constant scan is 0 in both; "
        "where the deviation is below 1e-6, training divided by 1e-6."
    )
    same = (
        "Training left a scan as it was where every spacing was within 1 % of the wanted one; here "
        "one that differs by more than 0.001 mm is resampled."
    )
    coverage = "Training refused scans that fill less than a quarter of the grid; here they pass."
    planar = "Training took planar images with their own axes; here their affine decides, as above."
    windows = (
        "Training saw windows at random places, and scores were made of windows side by side; here "
        "windows overlap and are averaged."
    )
    patches = isinstance(inputs, PatchInput)
    return [
        *([windows] if patches else [deviation]),
        *([same] if resamples(inputs) else []),
        *([] if patches else [coverage]),
        *([planar] if inputs.spatial_dims == 2 else []),
    ]
