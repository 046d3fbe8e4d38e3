"""The whole way in three lines of Python: data in, a trained recommender out.

    import sidera

    data = sidera.from_frame(events, user="uid", item="asin", time="ts")
    run = sidera.fit(data, "generator")
    run.recommend(["user-7"], k=10).to_frame()

:func:`fit` is ``sidera run`` without a shell: the same recipes, stages and files. What it leaves in ``out`` is a run
folder that ``sidera.load``, ``sidera serve`` and ``sidera compare`` open.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sidera import console
from sidera.config import SECTIONS, closest, load_recipe
from sidera.core import InputError, Request
from sidera.data.config import View, load_dataset, make_views
from sidera.data.dataset import Dataset
from sidera.engine.everyone import EveryoneConfig, request_of_user
from sidera.engine.recommender import Recommender
from sidera.engine.requests import keys_of_items, requests_of
from sidera.eval.evaluation import Evaluation
from sidera.frame import Answers
from sidera.models import RANKING, role_of
from sidera.recipes import find_recipe
from sidera.train.recipe import Recipe
from sidera.train.stages import evaluate_stage, prepare, train

DATA = "data"  # in the run folder, where the data came from memory


class Run:
    """A trained recommender with the data it was trained on."""

    def __init__(
        self, path: Path, data: Path, recipe: Recipe, recommender: Recommender, keep: Any = None, quiet: bool = False
    ) -> None:
        """``keep``: what must live as long as this does, such as a temporary folder."""
        self.path, self.data, self.recipe, self.recommender = path, data, recipe, recommender
        self._keep, self._quiet = keep, quiet
        self._view: View | None = None

    def recommend(
        self,
        who: Iterable[Any],
        k: int = 10,
        *,
        filter_seen: bool | None = None,
        unknown: Literal["report", "refuse"] = "report",
    ) -> Answers:
        """The ``k`` best items for each of ``who``: users of the data by their key, or histories of item keys, oldest
        first. Whole numbers are keys too.

        A user's whole history is read, with its feedback and times; InputError for a user whom the data does not know.
        Of a history unknown items are left out, and a warning says so where nothing is left: such a history is
        answered by the most popular items (``cold_start``). ``unknown = "refuse"`` raises instead.
        """
        if isinstance(who, str | bytes):
            raise InputError(f"{who!r} is one text", allowed="a list of users or of histories", fix=f"[{who!r}]")
        entries = list(who)
        single = [isinstance(entry, str | int | np.integer) for entry in entries]
        if any(single) and not all(single):
            raise InputError("users and histories are mixed", allowed="a list of users, or a list of histories")
        users = list(keys_of_items(entries, "users")) if any(single) else None
        if users is not None:
            config = EveryoneConfig(k, filter_seen)
            requests = [self._request(user, config) for user in users]
        else:
            requests = requests_of(entries, k, filter_seen)
        answers = self.recommender.recommend(requests, unknown=unknown)
        lost = [place for place, answer in enumerate(answers) if answer.cold_start and requests[place].history]
        if lost:
            first = ", ".join(map(repr, requests[lost[0]].history[:3]))
            warnings.warn(
                f"{len(lost)} of {len(answers)} histories hold no item that the model knows (the first: {first});"
                " the most popular items are answered",
                stacklevel=2,
            )
        return Answers(answers, users)

    def evaluate(self, rows: Literal["test", "valid"] = "test") -> Evaluation:
        """Measured on the held-out rows, with intervals; what was measured before is read again."""
        with _loudness(self._quiet):
            prepared = prepare(self.recipe, self.data)
            found = evaluate_stage(self.recipe, prepared, self.recommender, self.path, rows)
        assert isinstance(found, Evaluation), "a Recommender answers lists"
        return found

    def to_frame(self, who: Iterable[Any], k: int = 10, **options: Any) -> Any:
        """:meth:`recommend` as a pandas DataFrame, or an Arrow table where pandas is not installed."""
        return self.recommend(who, k, **options).to_frame()

    def save(self, path: str | Path) -> Path:
        """A copy of the run folder at ``path``, which must be new; ``sidera.load`` and ``sidera serve`` open it."""
        target = Path(path)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{str(path)!r} is there already", fix="name a new folder")
        shutil.copytree(self.path, target, dirs_exist_ok=True)
        return target

    @property
    def users(self) -> list[str]:
        """Keys of the users that can be asked for."""
        return [str(key) for key in self._log().dataset.user_keys]

    def _log(self) -> View:
        if self._view is None:
            everything, positives = make_views(load_dataset(self.data, self.recipe.data), self.recipe.data)
            self._view = everything if self.recommender.reads.feedback else positives
            self._rows = {str(key): row for row, key in enumerate(self._view.dataset.user_keys)}
        return self._view

    def _request(self, user: str, config: EveryoneConfig) -> Request:
        """What the data knows of a user, as a request that brings it along."""
        dataset = self._log().dataset
        row = self._rows.get(user)
        if row is None:
            fix = "ask with a history of items: run.recommend([[...]])"
            raise InputError(f"the data knows no user {user!r}{closest(user, self._rows)}", fix=fix)
        return request_of_user(dataset, row, self.recommender.catalog.schema, config)


def fit(
    data: Dataset | str | Path,
    recipe: str | Path | Mapping[str, Mapping[str, Any]] = "generator",
    out: str | Path | None = None,
    *,
    device: str = "cpu",
    quiet: bool = False,
    **sections: Mapping[str, Any],
) -> Run:
    """Catalogue and model by a recipe; evaluate with :meth:`Run.evaluate`.

    ``data``: what :func:`sidera.from_frame` gave, or a data folder. ``recipe``: a name of ``sidera recipes``, a TOML
    file, or its sections. ``out``: the run folder; finished stages in it are reused. Without one a temporary folder
    lasts as long as the run object; :meth:`Run.save` keeps it. Sections override keys of the recipe::

        sidera.fit(data, "generator", fit={"max_minutes": 5, "seed": 1}, model={"width": 96})

    InputError for an unknown recipe, section or key, as the shell says it.
    """
    chosen = Recipe.parse(_sections(recipe, sections))
    if role_of(chosen.model_name) in RANKING:
        raise InputError(f"{chosen.model_name} ranks candidates and finds none", fix="train it with `sidera run`")
    if chosen.fit.piece_minutes is not None:
        raise InputError("[fit] piece_minutes stops before the end", fix="use max_minutes, or `sidera run`")
    keep = tempfile.TemporaryDirectory(prefix="sidera-run-") if out is None else None
    path = Path(keep.name if keep is not None else str(out))
    if isinstance(data, Dataset):
        place = path / DATA
        data.save(place)
    else:
        place = Path(data)
    with _loudness(quiet):
        _, recommender = train(chosen, place, path, device=device)
    assert isinstance(recommender, Recommender), "no ranker, and a training without piece_minutes ends in one call"
    return Run(path, place, chosen, recommender, keep, quiet)


def _sections(
    recipe: str | Path | Mapping[str, Mapping[str, Any]], changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    sections = load_recipe(recipe if isinstance(recipe, Mapping) else find_recipe(recipe))
    for name, keys in changes.items():
        if name not in SECTIONS:
            raise InputError(
                f"fit() has no argument or section {name!r}{closest(name, SECTIONS)}", allowed=", ".join(SECTIONS)
            )
        if not isinstance(keys, Mapping):
            raise InputError(f"{name} = {keys!r}", allowed=f"a dictionary of keys, such as {name}={{...}}")
        sections[name] = sections[name] | dict(keys)
    return sections


@contextmanager
def _loudness(quiet: bool) -> Iterator[None]:
    if not quiet:
        yield
        return
    before = console.configure(console.QUIET)
    try:
        yield
    finally:
        console.configure(*before)
