"""One thread a test process (xdist gives each core a process), and one small trained run that many rooms share."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from checkerboard_recipe import CHECKERBOARD_RECIPE
from sidera.fit import tuning

torch.set_num_threads(1)
# A shell's background job starts with Ctrl-C ignored, which training respects, and its children inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs a file, and all contracts of a model: what they share is made once (``--dist loadgroup``)."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        of_model = "contracts" in item.path.parts and isinstance(params.get("name"), str)
        item.add_marker(pytest.mark.xdist_group(params["name"] if of_model else item.path.name))


@pytest.fixture(autouse=True, scope="session")
def auto_is_f32() -> Iterator[None]:
    """What ``precision = "auto"`` takes depends on a processor's speed; here no bf16 is fast enough for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "PAYS", math.inf)
        yield


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: sidera's generator on the checkerboard, and beside it ``data``. Read only: copy before breaking."""
    from sidera.data.tiny import checkerboard
    from sidera.train.recipe import Recipe
    from sidera.train.stages import run

    folder = tmp_path_factory.mktemp("trained")
    checkerboard().save(folder / "data")
    assert run(Recipe.parse(CHECKERBOARD_RECIPE), folder / "data", folder / "run", say=lambda _: None) is not None
    return folder / "run"
