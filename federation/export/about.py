"""What the record of a run cannot know: whose model it is, under which licence, and for what."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from federation.documents import Strict, load_document
from federation.experiment import Experiment

Text = Annotated[str, Field(min_length=1, max_length=2_000, pattern=r"^[^\x00-\x08\x0b-\x1f]+$")]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
_ORCID = re.compile(r"\d{4}-\d{4}-\d{4}-\d{3}[\dX]")


class Author(Strict):
    """Somebody who answers for the model.

    Attributes:
        orcid: As in ``0000-0002-1825-0097``; its last digit checks the others (ISO 7064).
    """

    name: Line
    affiliation: Line | None = None
    orcid: Annotated[str, Field(pattern=_ORCID.pattern)] | None = None

    @model_validator(mode="after")
    def _orcid_is_one(self) -> Self:
        if self.orcid is not None:
            digits, total = self.orcid.replace("-", ""), 0
            for digit in digits[:-1]:
                total = (total + int(digit)) * 2 % 11
            if "0123456789X"[(12 - total) % 11] != digits[-1]:
                raise ValueError(f"orcid {self.orcid} is none: its last digit does not fit")
        return self


class Citation(Strict):
    """What to cite."""

    text: Line
    doi: Annotated[str, Field(pattern=r"^10\.\d{4,9}/\S+$", max_length=200)] | None = None
    url: Annotated[str, Field(pattern=r"^https://\S+$", max_length=400)] | None = None

    @property
    def link(self) -> str | None:
        """Return where it is to be found: by its DOI, if it has one."""
        return f"https://doi.org/{self.doi}" if self.doi else self.url

    @property
    def line(self) -> str:
        """Return all of it, for where a link is text."""
        return " ".join(filter(None, [self.text, self.doi, self.url]))


class PublicImage(Strict):
    """An image that anybody may see: simulated, of a phantom, or of somebody who consented.

    Attributes:
        paths: NIfTI, OME-Zarr, or a folder or file of DICOM; of several channels one path each.
            Beside the file that names them if not absolute. They are not published.
        shows: What it is; published.
        declared_by: Who says that anybody may see it; published.
    """

    paths: tuple[Path, ...] = Field(min_length=1, max_length=64)
    shows: Line
    declared_by: Line


class About(Strict):
    """A file beside the run: ``about.yaml``. All of it is published.

    Attributes:
        licence: Of the model, as SPDX names it.
        intended_use, limits: In plain words, for the model card.
        picture: What pictures show the network; noise where there is none.
    """

    title: Line
    description: Text
    authors: tuple[Author, ...] = Field(min_length=1, max_length=100)
    licence: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{1,60}$")]
    cite: tuple[Citation, ...] = Field(default=(), max_length=100)
    intended_use: Text
    limits: Text = (
        "Not a medical device. It was trained on the sites named here alone; on images of other "
        "scanners, protocols or people it may be wrong without a sign of it."
    )
    picture: PublicImage | None = None


TEMPLATE = """\
# What is published beside a model: cohortium export RUN --format ... --about about.yaml
title: {title}
description: {purpose}
authors:
  - name: Your Name
    # affiliation: Your Institute
    # orcid: 0000-0002-1825-0097
licence: CC-BY-4.0                # of the model, as SPDX names it
# cite:
#   - text: Your paper, 2027
#     doi: 10.1234/example
intended_use: Research on {title}. Not for decisions about patients.
# picture:                        # an image that anybody may see, for the cover; noise without it
#   paths: [phantom.nii.gz]       # NIfTI, OME-Zarr or DICOM; one for each channel
#   shows: a simulated brain
#   declared_by: Dr A. Example
"""


def load_about(path: Path) -> About:
    """Read such a file; paths in it become absolute.

    Raises:
        FederationError: It is missing or invalid.
    """
    about = load_document(path, About, "about")
    if about.picture is None:
        return about
    paths = tuple(path.resolve().parent / one for one in about.picture.paths)
    picture = about.picture.model_copy(update={"paths": paths})
    return about.model_copy(update={"picture": picture})


def template(experiment: Experiment) -> str:
    """Return a file to fill in."""
    import json

    quoted = json.dumps(experiment.purpose, ensure_ascii=False)
    return TEMPLATE.format(title=experiment.name, purpose=quoted)
