"""Which sites make up a run: what an experiment asks for, and who was found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from federation.documents import Strict
from federation.messages import Description

SiteName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Seconds = Annotated[float, Field(gt=0, le=30 * 24 * 3600, allow_inf_nan=False)]


class CohortPolicy(Strict):
    """Who should take part in a round, how long it waits, and what becomes of one with too few.

    The minimum is ``algorithm.min_sites``.

    Attributes:
        sites: How many sites the experiment is meant for, or their names. Other sites than those
            named are left out; more than the number stop a run before it trains.
        deadline_s: Longest wait for the updates of a round, and for sites' other answers; a day
            where none is given.
        below_minimum: With too few valid updates, ``stop`` ends the run; ``skip`` leaves the model
            as it was and goes on (what sites paid stands); ``wait`` asks those who did not answer,
            or were not there, again.
        waits: With ``wait``, how many times. After that the run stops.
        wait_s: How long each of these waits lasts.
        max_update_norm: Largest L2 norm of an update. A reply beyond it is refused.
    """

    sites: (
        Annotated[int, Field(ge=1, le=1_000)]
        | Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=1_000)]
        | None
    ) = None
    deadline_s: Seconds | None = None
    below_minimum: Literal["stop", "skip", "wait"] = "stop"
    waits: Annotated[int, Field(ge=1, le=1_000)] = 3
    wait_s: Seconds = 600.0
    max_update_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if isinstance(self.sites, tuple) and len(set(self.sites)) < len(self.sites):
            raise ValueError("cohort.sites names a site twice; name each once")
        return self

    @property
    def names(self) -> tuple[str, ...] | None:
        """Return the names of the sites, if they are declared."""
        return self.sites if isinstance(self.sites, tuple) else None

    @property
    def num_sites(self) -> int | None:
        """Return how many sites there should be, if that is declared."""
        return len(self.sites) if isinstance(self.sites, tuple) else self.sites


@dataclass(frozen=True)
class Cohort:
    """The sites of a run.

    Attributes:
        sites: Node id to the site's statement, in the order of site names.
        refused: Site (or node, where the name is not known) to the code it declined with.
        details: What was wrong with a statement that could not be read.
    """

    sites: Mapping[int, Description]
    refused: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[int, str]:
        """Node id to site name."""
        return {node_id: site.site for node_id, site in self.sites.items()}
