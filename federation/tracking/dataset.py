"""A site's data set as MLflow knows it: a commitment and public facts, never a location."""

import json
from typing import Any

from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import register_dataset_source
from mlflow.entities import DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from federation.errors import FederationError
from federation.messages import Description

# MLflow's database column holds no more.
MAX_DIGEST_LENGTH = 36
_FACTS = (
    "site",
    "commitment",
    "public_key",
    "dataset",
    "source_kind",
    "modality",
    "num_subjects",
    "licence",
    "data_use",
)


class SiteDatasetSource(DatasetSource):
    """Data that stays at a site; the full commitment tells which data it was."""

    def __init__(self, facts: dict[str, str]) -> None:
        self.facts = facts

    @classmethod
    def of(cls, site: Description) -> "SiteDatasetSource":
        """Take the public facts of a site's statement."""
        return cls({name: getattr(site, name) for name in _FACTS})

    @staticmethod
    def _get_source_type() -> str:
        return "cohortium_site"

    def load(self) -> Any:
        """Refuse: nobody but the site can open its data.

        Raises:
            FederationError: Always; it names whom to ask.
        """
        raise FederationError(
            f"These images stay at {self.facts['site']}. MLflow holds a commitment to them; ask "
            "the site to open it."
        )

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:  # noqa: ARG004 - MLflow's signature
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "SiteDatasetSource":  # noqa: ARG003
        raise FederationError("A site's data set has no location that could be resolved.")

    def to_dict(self) -> dict[Any, Any]:
        """Return the public facts."""
        return dict(self.facts)

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> "SiteDatasetSource":
        """Read what ``to_dict`` wrote."""
        return cls({name: str(source_dict[name]) for name in _FACTS})


class SiteDataset(Dataset):
    """A site's data set as an input of a run."""

    def __init__(self, site: Description) -> None:
        self._num_subjects = site.num_subjects
        self._commitment = site.commitment
        super().__init__(SiteDatasetSource.of(site), name=f"{site.site}: {site.dataset}")

    def _compute_digest(self) -> str:
        return self._commitment.removeprefix("sha256:")[:MAX_DIGEST_LENGTH]

    @property
    def profile(self) -> dict[str, str]:
        """Counts, as the site chose to publish them."""
        return {"num_subjects": self._num_subjects}

    @property
    def schema(self) -> None:
        """Images have no table schema."""

    def to_dict(self) -> dict[str, str]:
        """Return MLflow's description of the data set, with the profile."""
        return {**super().to_dict(), "profile": json.dumps(self.profile)}


def training_input(site: Description) -> DatasetInput:
    """Return a site's data set as what a run was trained on."""
    context = [InputTag(MLFLOW_DATASET_CONTEXT, "training")]
    return DatasetInput(SiteDataset(site)._to_mlflow_entity(), tags=context)


# MLflow annotates an instance here, and means the class (its own sources do the same).
register_dataset_source(SiteDatasetSource)  # type: ignore[arg-type]
