"""What a DICOM Segmentation gives alone: segment numbers on its own grid (PS3.3 A.51, C.8.20).

Where segments overlap or hold fractions there is no map of numbers: a reader may give one channel
a segment, or refuse with the code that stands beside it.
"""

import numpy as np

from tests.data_adapters.outcomes.make_geometry import lone_affine, stack


def segmentation(data, groups_of):
    """Return (image, affine, rule, code that a refusal may have).

    Args:
        groups_of: Makes the functional groups of a frame from the data set and its number.
    """
    frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    groups = [groups_of(data, number) for number in range(len(frames))]
    if "TotalPixelMatrixRows" in data:
        spots, shape, affine, rule = _tiles(data, groups)
    else:
        spots, shape, affine, rule = _slices(data, groups)
    masks = _masks(data, groups, frames, spots, shape)
    image, or_code = _merged(masks)
    if "NumberOfFrames" not in data:
        # Type 1 in C.7.6.6, and the groups tell of more frames than there are: highdicom reads
        # the one that is there, and to refuse the file is no less right.
        or_code = "UNREADABLE_FILE|UNDECODABLE_PIXELS|UNSUPPORTED_OBJECT|NO_GEOMETRY"
    return image, affine, rule, or_code


def _slices(data, groups):
    """Return where frames go: a whole plane each."""
    planes = [group.plane for group in groups]
    keys = [tuple(np.round(plane.position, 4)) for plane in planes]
    unique = dict(zip(keys, planes, strict=True))
    if len(unique) == 1:
        place_of = dict.fromkeys(unique, 0)
        affine, _ = lone_affine(planes[0], groups[0].step_mm(), None)
    else:
        step = groups[0].value("PixelMeasuresSequence", "SpacingBetweenSlices")
        step = float(step) if step else None
        order, places, affine = stack([*unique.values()], gaps_are_empty=True, step_mm=step)
        place_of = {[*unique][i]: int(z) for i, z in zip(order, places, strict=True)}
    whole = slice(0, data.Rows), slice(0, data.Columns)
    shape = max(place_of.values()) + 1, data.Rows, data.Columns
    return [(place_of[key], *whole) for key in keys], shape, affine, "full"


def _tiles(data, groups):
    """Return where frames go: tiles of one total pixel matrix (C.8.12.14, C.7.6.17.3)."""
    rows, columns = data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns
    across, down = -(-columns // data.Columns), -(-rows // data.Rows)
    spots = []
    for number, group in enumerate(groups):
        name = "PlanePositionSlideSequence"
        y = group.value(name, "RowPositionInTotalImagePixelMatrix")
        x = group.value(name, "ColumnPositionInTotalImagePixelMatrix")
        if y is None:  # TILED_FULL: along rows, down, then the next segment
            tile = number % (across * down)
            y, x = tile // across * data.Rows + 1, tile % across * data.Columns + 1
        spots.append((0, slice(y - 1, y - 1 + data.Rows), slice(x - 1, x - 1 + data.Columns)))
    spacing = groups[0].value("PixelMeasuresSequence", "PixelSpacing")
    affine = np.diag([1.0, float(spacing[0]), float(spacing[1]), 1.0])
    return spots, (1, rows, columns), affine, "spacing"


def _masks(data, groups, frames, spots, shape):
    """Return segment number to its fraction of each voxel."""
    if data.SegmentationType == "LABELMAP":
        image = np.zeros(shape)
        for frame, spot in zip(frames, spots, strict=True):
            image[spot] = frame
        return {int(n): (image == n).astype(float) for n in np.unique(image) if n}
    whole = data.get("MaximumFractionalValue", 1) if data.SegmentationType == "FRACTIONAL" else 1
    masks = {int(s.SegmentNumber): np.zeros(shape) for s in data.SegmentSequence}
    numbers = [*masks]
    for index, (frame, spot) in enumerate(zip(frames, spots, strict=True)):
        segment = groups[index].value("SegmentIdentificationSequence", "ReferencedSegmentNumber")
        if segment is None:
            segment = numbers[index // (len(frames) // len(numbers))]
        masks[segment][spot] = frame / whole
    return masks


def _merged(masks):
    """Return a map of numbers if one exists, else a channel for each segment."""
    every = np.stack([masks[number] for number in sorted(masks)])
    if not np.isin(every, (0, 1)).all():
        return every, "FRACTIONAL_LABELS"
    if (every.sum(axis=0) > 1).any():
        return every, "OVERLAPPING_LABELS"
    numbers = np.array(sorted(masks), dtype=float)
    return np.tensordot(numbers, every, axes=1), ""
