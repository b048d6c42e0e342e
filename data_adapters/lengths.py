"""Lengths as people write them: ``0.65 um``, ``1.5 mm``, or a bare number of millimetres."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

# OME-Zarr 0.5 "axes metadata": UDUNITS-2 names of length; here, millimetres in one of each.
MILLIMETRES_IN = {
    "angstrom": 1e-7,
    "picometer": 1e-9,
    "nanometer": 1e-6,
    "micrometer": 1e-3,
    "millimeter": 1.0,
    "centimeter": 10.0,
    "decimeter": 100.0,
    "meter": 1000.0,
    "inch": 25.4,
}
_SHORT = {
    "pm": "picometer",
    "nm": "nanometer",
    "um": "micrometer",
    "µm": "micrometer",  # micro sign, U+00B5
    "μm": "micrometer",  # Greek mu, U+03BC
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
}
_LENGTH = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(\S+)\s*")


def millimetres(value: Any) -> Any:
    """Turn ``"0.65 um"`` into millimetres; leave a number as it is.

    Raises:
        ValueError: The text is no length, or its unit is unknown.

    >>> millimetres("650 nm"), millimetres("1.5 mm"), millimetres(2)
    (0.00065, 1.5, 2)
    """
    if not isinstance(value, str):
        return value
    matched = _LENGTH.fullmatch(value)
    unit = _SHORT.get(matched[2], matched[2]) if matched else ""
    if matched is None or unit not in MILLIMETRES_IN:
        known = ", ".join(sorted({*_SHORT} - {"μm"}))
        raise ValueError(f"{value!r} is no length: write a number and one of {known}")
    # Dividing by a whole number where there is one keeps 650 nm at 0.00065, not 0.0006499….
    per_mm = MILLIMETRES_IN[unit]
    number = float(matched[1])
    return number / round(1 / per_mm) if per_mm < 1 else number * per_mm


LengthMm = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False), BeforeValidator(millimetres)]
