"""What each level of an OME-Zarr image should give, from its metadata (NGFF 0.5) and zarr-python.

Space is RAS+: x to the right, y to the front, z up; a plane has a z step of 1 mm.
"""

import numpy as np

MILLIMETRES = {"micrometer": 1e-3, "millimeter": 1.0, "nanometer": 1e-6}


def levels_of(path):
    """Yield (level, image zyx, affine) of a multiscale image of one channel."""
    import zarr

    group = zarr.open_group(str(path), mode="r")
    attributes = group.attrs.asdict()
    multiscale = attributes.get("ome", attributes)["multiscales"][0]
    for number, dataset in enumerate(multiscale["datasets"]):
        image = np.asarray(group[dataset["path"]][...])
        names = [axis["name"] for axis in multiscale["axes"]]
        if "z" not in names:
            image = image[None]
        yield number, image, _affine(multiscale["axes"], dataset["coordinateTransformations"])


def _affine(axes, transformations):
    scale, offset = {"z": 1.0}, {}
    for transformation in transformations:
        for axis, value in zip(axes, transformation[transformation["type"]], strict=True):
            target = scale if transformation["type"] == "scale" else offset
            target[axis["name"]] = value * MILLIMETRES[axis["unit"]]
    affine = np.zeros((4, 4))
    for column, (name, row) in enumerate((("z", 2), ("y", 1), ("x", 0))):
        affine[row, column] = scale[name]
        affine[row, 3] = offset.get(name, 0.0)
    affine[3, 3] = 1
    return affine
