"""Lengths as people write them."""

import pytest
from pydantic import BaseModel, ValidationError

from data_adapters.lengths import LengthMm


class Grid(BaseModel):
    step: LengthMm


@pytest.mark.parametrize(
    ("text", "millimetres"),
    [
        (0.5, 0.5),
        (2, 2.0),
        ("0.65 um", 0.00065),
        ("0.65um", 0.00065),
        ("0.65 µm", 0.00065),
        ("0.65 micrometer", 0.00065),
        ("325 nm", 0.000325),
        ("1.5 mm", 1.5),
        ("2e-1 cm", 2.0),
        (".5 millimeter", 0.5),
    ],
)
def test_units_become_millimetres(text, millimetres):
    assert Grid(step=text).step == pytest.approx(millimetres, rel=1e-15)


@pytest.mark.parametrize("text", ["0.65", "um", "0.65 furlong", "0.65 u m", "-1 mm", "nan mm", ""])
def test_what_is_no_length_is_refused_with_the_units(text):
    with pytest.raises(ValidationError, match=r"write a number and one of|greater than 0"):
        Grid(step=text)


@pytest.mark.parametrize("value", [0, -1, 1e9, float("nan"), float("inf"), "0 mm"])
def test_a_length_is_positive_and_finite(value):
    with pytest.raises(ValidationError):
        Grid(step=value)
