"""A ranker or a list reward bound to a Catalog: what a run of one trains, measures, saves and opens.

    ranking = Ranking.load("runs/pscore")                      # a run folder
    ranking = Ranking.load("runs/x/reward", catalog)           # of an alignment: the catalogue is the policy's

It answers nothing alone: a generator or retriever finds candidates, and ``engine.reranker`` puts them in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidera.catalog.catalog import Catalog
from sidera.core import ArtifactError
from sidera.data.dataset import Dataset
from sidera.data.reading import LogReading, Reading
from sidera.loading import open_artifact
from sidera.models import RANKING, role_of
from sidera.models.saved import save_model, saved_model


@dataclass
class Ranking:
    """A network of role "ranker" or "reward" over the items of a Catalog."""

    model: Any
    catalog: Catalog
    model_section: dict[str, Any]
    device: str = "cpu"
    num_known: int | None = None  # items that the network has rows for; None: all of the catalogue
    version: str = "unsaved"  # names the weights

    def __post_init__(self) -> None:
        self.model = self.model.to(self.device).eval()

    @property
    def role(self) -> str:
        return str(self.model.role)

    def read_log(self, dataset: Dataset) -> LogReading:
        """How the network reads this log."""
        return Reading(self.catalog.schema, self.catalog.items, self.model.reads).over(dataset)

    def save_model(
        self, path: str | Path, *, digest: str, parents: dict[str, str], training: dict[str, Any] | None = None
    ) -> None:
        """Write the model artifact, as a Recommender does."""
        save_model(
            self.model, path, self.catalog, self.model_section, digest=digest, parents=parents,
            num_known=self.num_known, training=training,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, catalog: Catalog | None = None, device: str = "cpu") -> Ranking:
        """Open a folder with ``model/`` inside, and ``catalog/`` where no catalogue is given; the latter may have grown
        since the training. ArtifactError when there is none, or it holds another role."""
        path = Path(path)
        if not (path / "model").is_dir():
            raise ArtifactError(f"no ranker at {str(path)!r}", fix="make one: sidera run with a ranker's recipe")
        catalog = catalog or Catalog.load(path / "catalog")
        opened = open_artifact(path / "model", "model")
        network, section, num_known = saved_model(opened, catalog)
        if role_of(section["name"]) not in RANKING:
            raise opened.damaged(f"it holds {section['name']!r}, which ranks no candidates")
        return cls(network, catalog, section, device, num_known, opened.manifest.digest)
