"""Which files make one image, which images make one scan, and which labels mean it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from data_adapters.dicom_headers import Instance
from data_adapters.dicom_objects import LABEL_KINDS, Kind
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource, Select

# A projection is an image by itself; anything else needs its whole series.
_ALONE = frozenset({Kind.PLANAR})
_MOST_SHOWN = 8
_PASSED_OVER = frozenset({Kind.DIRECTORY, *LABEL_KINDS})


@dataclass(frozen=True)
class Image:
    """The files of one image: a series, or one projection of a series."""

    instances: tuple[Instance, ...]

    @property
    def series(self) -> str:
        """Return the series' UID."""
        return self.instances[0].series

    @property
    def study(self) -> str:
        """Return the study's UID; of files without one, their folder."""
        return self.instances[0].study or str(self.instances[0].path.parent)

    @property
    def is_alone(self) -> bool:
        """Return whether its series may hold other images."""
        return self.instances[0].kind in _ALONE

    @property
    def num_slices(self) -> int:
        """Return how many slices its files hold."""
        return sum(instance.num_frames for instance in self.instances)


@dataclass(frozen=True)
class Choice:
    """One or more images, as many as the source has channels; or why there is none."""

    images: tuple[Image, ...]
    refusal: Unusable | None = None


def images_of(instances: Iterable[Instance]) -> tuple[Image, ...]:
    """Sort files into images; objects that are no image are passed over."""
    series: defaultdict[tuple[str, str], list[Instance]] = defaultdict(list)
    for instance in instances:
        if instance.kind in _PASSED_OVER or (
            instance.kind is Kind.OTHER and not instance.photometric
        ):
            continue
        alone = instance.kind in _ALONE or not instance.series
        series[instance.series, str(instance.path) if alone else ""].append(instance)
    return tuple(Image(tuple(files)) for files in series.values())


def matches(image: Image, select: Select) -> bool:
    """Return whether every given key of the rule fits the series."""
    first = image.instances[0]
    pattern = (select.description or "*").casefold()
    return (
        select.modality in (None, first.modality, first.public_modality)
        and fnmatchcase(first.description.casefold(), pattern)
        and _is_of_type(image, {value.upper() for value in select.image_type})
        and image.num_slices >= select.min_slices
    )


def _is_of_type(image: Image, wanted: set[str]) -> bool:
    """Of a slide one level is enough: coarser ones are DERIVED, and label and overview no image."""
    if image.instances[0].kind is Kind.SLIDE:
        levels = [one for one in image.instances if "VOLUME" in one.image_type]
        return any(wanted <= set(level.image_type) for level in levels)
    return all(wanted <= set(instance.image_type) for instance in image.instances)


def chosen(images: Sequence[Image], source: DicomSource) -> tuple[Choice, ...]:
    """Apply the source's series rule to each study; every study has a choice or a refusal."""
    if source.select is None and not source.channels:
        return tuple(Choice((image,)) for image in images)
    by_study: defaultdict[str, list[Image]] = defaultdict(list)
    for image in images:
        by_study[image.study].append(image)
    return tuple(choice for study in by_study.values() for choice in _of_study(study, source))


def _of_study(images: Sequence[Image], source: DicomSource) -> Iterator[Choice]:
    if source.select is not None:
        found = [image for image in images if matches(image, source.select)]
        if not found:
            yield Choice(tuple(images), Unusable("NO_MATCHING_SERIES", _sizes(images)))
        elif len({image.series for image in found}) > 1:
            yield Choice(tuple(found), Unusable("AMBIGUOUS_SERIES", _sizes(found)))
        else:
            # Every projection of the one series is a scan of its own.
            yield from (Choice((image,)) for image in found)
        return
    by_channel = {
        channel.name: [image for image in images if matches(image, channel.select)]
        for channel in source.channels
    }
    yield _channels(by_channel, tuple(images))


def _channels(by_channel: Mapping[str, Sequence[Image]], every: tuple[Image, ...]) -> Choice:
    found = tuple(image for images in by_channel.values() for image in images)
    missing = [name for name, images in by_channel.items() if not images]
    several = [name for name, images in by_channel.items() if len(images) > 1]
    if several:
        detail = f"{_sizes(by_channel[several[0]])} for {several[0]}"
        return Choice(found, Unusable("AMBIGUOUS_SERIES", detail))
    if missing:
        return Choice(found or every, Unusable("MISSING_CHANNEL", ", ".join(missing)))
    return Choice(found)


def _sizes(images: Sequence[Image]) -> str:
    shown = [str(image.num_slices) for image in images[:_MOST_SHOWN]]
    more = ", ..." if len(images) > _MOST_SHOWN else ""
    return f"{len(images)} images of {', '.join(shown)}{more} slices"


@dataclass(frozen=True)
class Labels:
    """A segmentation or structure set, and the channel it was drawn on."""

    channel: int
    instance: Instance


class Pairing:
    """Which of a source's images each label object means."""

    def __init__(self, images: Sequence[Image], labels: Iterable[Instance]) -> None:
        self._by_series: defaultdict[str, list[Image]] = defaultdict(list)
        self._by_frame: defaultdict[tuple[str, str], list[Image]] = defaultdict(list)
        for image in images:
            first = image.instances[0]
            self._by_series[image.series].append(image)
            self._by_frame[first.study, first.frame_of_reference].append(image)
        self._meant = [(label, self._images(label)) for label in labels]

    def _images(self, label: Instance) -> tuple[Image, ...]:
        """References name what it was drawn on; the frame of reference alone may fit several."""
        referenced = tuple(
            image
            for series, instances in label.references
            for image in self._by_series.get(series, ())
            if not image.is_alone or not instances or image.instances[0].instance in instances
        )
        if referenced or not label.frame_of_reference:
            return referenced
        return tuple(self._by_frame.get((label.study, label.frame_of_reference), ()))

    def assign(
        self, choices: Sequence[Choice]
    ) -> tuple[tuple[tuple[Labels, ...], ...], tuple[Instance, ...], int]:
        """Give each label object to the one choice it means.

        Returns:
            The labels of each choice; objects that mean none or several; how many mean an image
            that the series rule left out.
        """
        places = {
            id(image): (place, channel)
            for place, choice in enumerate(choices)
            for channel, image in enumerate(choice.images)
        }
        assigned: defaultdict[int, list[Labels]] = defaultdict(list)
        orphans, num_left_out = [], 0
        for label, images in self._meant:
            found = sorted(places[id(image)] for image in images if id(image) in places)
            if len({place for place, _ in found}) > 1 or not images:
                orphans.append(label)
            elif not found:
                num_left_out += 1
            else:
                place, channel = found[0]
                assigned[place].append(Labels(channel, label))
        every = tuple(tuple(assigned[place]) for place in range(len(choices)))
        return every, tuple(orphans), num_left_out


def crowded_folders(images: Iterable[Image]) -> Counter[str]:
    """Return how many images have files in each folder."""
    return Counter(
        folder for image in images for folder in {str(i.path.parent) for i in image.instances}
    )
