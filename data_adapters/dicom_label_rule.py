"""How a site's own label names become class indices, and what happens where they overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_adapters.nearest import unmapped
from data_adapters.reasons import Unusable
from data_adapters.sources import DicomSource, class_values


@dataclass(frozen=True)
class LabelRule:
    """The site file's ``classes``.

    Args:
        values: SegmentLabel, ROIName or coded type to the stored index, in the file's order.
        last_wins: The label that stands later takes a voxel that two classes claim; else the
            scan is left out.
    """

    values: Mapping[str, int]
    last_wins: bool = False

    def keys_of(self, labels: Mapping[int, Sequence[str]]) -> dict[int, str]:
        """Return the key of each labelled number, in the order in which they are painted.

        Args:
            labels: Number of a segment or region to what it may be called, best name first.

        Raises:
            Unusable: UNMAPPED_LABEL.
        """
        found = {
            number: next((name for name in names if name in self.values), "")
            for number, names in labels.items()
        }
        missing = [labels[number] for number, key in found.items() if not key]
        if missing:
            raise Unusable("UNMAPPED_LABEL", unmapped(missing, self.values))
        order = list(self.values)
        return dict(sorted(found.items(), key=lambda entry: order.index(entry[1])))


def label_rule(source: DicomSource) -> LabelRule:
    """Return the rule of a source."""
    return LabelRule(class_values(source, source.classes), source.overlaps == "last_wins")


class Canvas:
    """Class indices on an image's grid, 0 where nothing was painted yet."""

    def __init__(self, shape_zyx: tuple[int, int, int], rule: LabelRule) -> None:
        self.labels: NDArray[np.uint8] = np.zeros(shape_zyx, dtype=np.uint8)
        self._rule = rule

    def paint(self, mask: NDArray[np.bool_], key: str, place: slice | int = slice(None)) -> None:
        """Give voxels to the class of ``key``. What is mapped to background claims nothing.

        Args:
            place: Slices that ``mask`` covers.

        Raises:
            Unusable: OVERLAPPING_LABELS: another class has one of the voxels.
        """
        value = self._rule.values[key]
        if value == 0:
            return
        target = self.labels[place]
        if not self._rule.last_wins and np.any(mask & (target != 0) & (target != value)):
            raise Unusable("OVERLAPPING_LABELS")
        target[mask] = value
