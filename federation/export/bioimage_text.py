"""``documentation.md`` of a BioImage Model Zoo package: use, privacy in plain words, checks."""

from collections.abc import Iterator, Sequence

from data_adapters.inputs import PatchInput, SliceInput
from federation.experiment import Experiment, RegressionTask, SubjectDP
from federation.export.about import About, Citation
from federation.export.bioimage_tensors import OUTPUT, spacing_of
from federation.export.markdown import plain
from federation.export.pictures import in_words
from federation.export.summaries import Curve, class_names, curves
from federation.run_record import FinishedRun, RunRecord, rounded_up


def documentation(run: FinishedRun, about: About, formats: Sequence[str]) -> str:
    """Return Markdown. ``formats``: of the weights in the package, as ``rdf.yaml`` names them."""
    record = run.record
    parts = (
        [f"# {about.title}", "", about.description],
        _cover(record, about),
        ["", "## Intended use", "", about.intended_use, "", "## Limits", "", about.limits],
        _images(record.experiment),
        _outputs(record.experiment),
        _weights(formats),
        _data(record),
        _scores(record),
        _privacy(record),
        _validation(record),
        _citations(about.cite),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def _cover(record: RunRecord, about: About) -> Iterator[str]:
    yield from ("", "![Cover](cover.png)", "")
    yield (
        f"*The picture*: {plain(cover_in_words(record, about))} The test tensors are noise made "
        "from the experiment's seed and shape alone; no image of a site has a part in either."
    )


def cover_in_words(record: RunRecord, about: About) -> str:
    """Return what the cover shows, for those who do not see it."""
    experiment, shown = record.experiment, curves(record)
    left = f"on the left {in_words(about)}, and "
    if experiment.task.learns == "voxels":
        left += (
            "the class that the network gives "
            f"each of its voxels ({', '.join(class_names(experiment.task))})"
        )
    else:
        left += "what the network says of it"
    if not shown:
        return f"{left}."
    ends = "; ".join(f"{c.site} from {c.values[0]:.3f} to {c.values[-1]:.3f}" for c in shown)
    return f"{left}; on the right, by site, the {experiment.task.score} after each round: {ends}."


def _images(experiment: Experiment) -> Iterator[str]:
    given = experiment.input
    axes = spacing_of(experiment)
    spacing = " x ".join(f"{step:g}" for step, _ in axes.values())
    unit = next(iter(axes.values()))[1]
    shape = " x ".join(map(str, given.shape))
    yield from ("", "## Images", "")
    yield f"- Axes {', '.join(axes)}; resample to {spacing} {unit} between voxel centres first."
    if isinstance(given, SliceInput):
        yield "- Planes: axial slices of volumes, y from posterior to anterior; or planar scans."
    elif given.spatial_dims == 3:
        yield "- Volumes lie along (superior, anterior, right)."
    yield f"- Channels, in this order: {', '.join(given.channels or ('image',))}."
    yield (
        f"- Trained on a grid of {shape}. "
        + (
            f"Larger ones may be given in steps of {experiment.model.downsampling}."
            if experiment.task.learns == "voxels"
            else "Images are cropped or padded to it."
        )
    )
    yield "- Values are real-world values of the scanner, as they are; the package normalises them."
    yield from ("", "### Where the format's normalisation differs from training's", "")
    yield (
        "`rdf.yaml` declares `zero_mean_unit_variance` over the axes of space, each channel by "
        "itself: (x - mean) / (deviation + 1e-6), the deviation over n."
    )
    if isinstance(given, PatchInput):
        yield (
            "Training took mean and deviation (over n; 1e-6 where that is less) of the **whole "
            "scan as stored**, before resampling, and cut patches afterwards. Give a whole scan as "
            "one sample, and let the tool cut it into blocks: it then normalises with the whole "
            "scan's statistics, too. A patch by itself is normalised with its own."
        )
    elif isinstance(given, SliceInput):
        yield (
            "Training took mean and deviation (over n - 1; 1e-6 where that is less) of the **whole "
            "scan**, all slices together, after resampling and before crop and padding. For planar "
            "scans this is the same up to 1 part in 2n. A slice of a volume is normalised by "
            "itself here, which is not the same where slices differ much, and blows up noise in an "
            "empty one. To repeat training, normalise the volume yourself and skip this step."
        )
    else:
        yield (
            "Training took mean and deviation (over n - 1; 1e-6 where that is less) of the **whole "
            "scan** after resampling and before crop and padding. Of a scan that is given whole "
            "this is the same up to 1 part in 2n; of one that was padded it is not."
        )


def _outputs(experiment: Experiment) -> Iterator[str]:
    task = experiment.task
    yield from ("", "## What it gives", "")
    if isinstance(task, RegressionTask):
        yield f"`{OUTPUT}`: {task.value}. `rdf.yaml` scales what the network says to that unit."
        return
    of = "voxel" if task.learns == "voxels" else "image"
    yield (
        f"`{OUTPUT}`: one logit of each {of} and class, as the network gives them. The format has "
        "no operation for the largest of them, so none is declared: take the argmax of `channel`."
    )
    yield from ("", "| channel | class |", "|---|---|")
    for number, name in enumerate(task.classes):
        code = "" if task.shown(name) == name else f" ({name})"
        yield f"| {number} | {task.shown(name)}{code} |"


def _weights(formats: Sequence[str]) -> Iterator[str]:
    yield from ("", "## Weights", "", f"Of one model, as {' and '.join(formats)}.")
    if "pytorch_state_dict" not in formats:
        yield (
            "MONAI's own class keeps layers in this network (BatchNorm) that Cohortium replaces, "
            "so a state dict would need code beside it. None travels here."
        )


def _data(record: RunRecord) -> Iterator[str]:
    yield from ("", "## Training data", "")
    yield "Images stayed at their sites. What each site says of its data set:"
    columns = ("site", "data set", "modality", "subjects", "licence", "data use (DUO)")
    yield from ("", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}")
    for site in record.contributors:
        told = (
            *(site.site, site.dataset, site.modality),
            *(site.num_subjects, site.licence, site.data_use),
        )
        yield f"| {' | '.join(map(plain, told))} |"


def _scores(record: RunRecord) -> Iterator[str]:
    shown: Sequence[Curve] = curves(record)
    yield from ("", "## Scores", "")
    if not shown:
        yield "No site declared public subjects, so that there is no score."
        return
    name = record.experiment.task.score
    yield f"{name} on the subjects that each site declares public; round 0 is before training."
    yield from ("", f"| site | {name}, first | {name}, last |", "|---|---|---|")
    for curve in shown:
        first, last = (f"{curve.values[i]:.4f} (round {curve.rounds[i]})" for i in (0, -1))
        yield f"| {plain(curve.site)} | {first} | {last} |"


def _privacy(record: RunRecord) -> Iterator[str]:
    privacy = record.experiment.privacy
    yield from ("", "## Privacy", "")
    if not isinstance(privacy, SubjectDP):
        yield (
            "**None.** This model was trained without differential privacy: epsilon is infinite. "
            "What it tells of single subjects is not bounded."
        )
        return
    yield (
        "Trained under differential privacy of **subjects** (a patient or specimen with all of its "
        "images), at each site by itself, by noise that the site added before anything left it."
    )
    yield from ("", "| site | epsilon of this run | delta |", "|---|---|---|")
    for site in sorted(record.epsilon):
        yield f"| {plain(site)} | {rounded_up(record.epsilon[site], 4)} | {privacy.delta:g} |"
    yield from (
        "",
        "- Unit: one subject with all of its images. Adjacency: one subject added or removed.",
        f"- Noise: in each step each subject enters with probability {privacy.sampling_rate:g}; "
        f"its gradient is clipped to an L2 norm of {privacy.clip_norm:g}; the sum gets Gaussian "
        f"noise of standard deviation {record.noise_multiplier:g} times that.",
        "",
        "**What it means.** Whatever somebody works out from this model and from every update that "
        "left a site, they could have worked out almost as well had any one subject not been "
        "there: the odds that they can give to 'was it there' change by a factor of at most "
        "e^epsilon, but for a chance of delta.",
        "",
        "**What it does not mean.** Not that nothing can be learnt of a subject from what holds "
        "for all subjects. Not that a site's earlier or later runs are in the number: its ledger "
        "adds them up. Not that one person at two sites is protected as once: budgets add. Not "
        "that the model is right, or fair.",
    )


def _validation(record: RunRecord) -> Iterator[str]:
    yield from ("", "## Validation", "")
    yield "That the package gives what it promises: `bioimageio test rdf.yaml` (bioimageio.core)."
    yield "On unseen data: predict, compare with annotations of your own, as the scores above."
    yield from ("", "### That the privacy statement holds", "")
    yield (
        "`run.json`, `receipts.json` and `closings.json` lie in this package. Ask each site for "
        "its ledger and, by another way, for its key's fingerprint (trust.txt), then"
    )
    yield from ("", "    cohortium audit verify --trust trust.txt PACKAGE/ LEDGERS/", "")
    yield "recomputes every epsilon with dp-accounting. It should name these:"
    yield ""
    yield f"- experiment `{record.experiment.digest()}`"
    yield f"- run `{record.run}`, finished {record.finished}"
    yield f"- model `{record.model_digest}`"
    for site, head in sorted(record.heads.items()):
        yield f"- head of {plain(site)}'s ledger `{head}`"


def _citations(cite: Sequence[Citation]) -> Iterator[str]:
    if cite:
        yield from ("", "## Please cite", "")
    for one in cite:
        yield f"- {one.text}" + (f" <{one.link}>" if one.link else "")
