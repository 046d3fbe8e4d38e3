"""The wheel as a stranger meets it: built from the source distribution, installed where no checkout is, and driven."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES_OF_DEVELOPERS = {"pytest", "ruff", "mypy", "scikit-learn", "scipy", "matplotlib", "pandas", "polars"}


@pytest.fixture
def first_hour(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("first_hour")


def test_an_installation_is_small_beside_torch(first_hour: ModuleType) -> None:
    sizes = first_hour.install_sizes("sidera")
    assert {"numpy", "pyarrow", "safetensors"} <= set(sizes)
    assert not {"scikit-learn", "scipy"} & set(sizes)
    assert sum(sizes.values()) - sum(sizes.get(name, 0.0) for name in PACKAGES_OF_DEVELOPERS) > 100  # it counts


@pytest.mark.slow
def test_the_wheel_is_driven_from_a_csv_to_a_list(first_hour: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    facts = first_hour.write_log(tmp_path / "events.csv")
    sidera = first_hour.install(tmp_path)
    (wheel,) = tmp_path.glob("sidera-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"sidera/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("recipes/*/*.toml")}
    assert recipes <= packed
    assert "sidera/py.typed" in packed
    assert not any(name.startswith(("tests", "benchmarks", "recipes/")) for name in packed)

    work = tmp_path / "elsewhere"
    work.mkdir()
    environment = {**first_hour.clean_environment(), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        found = subprocess.run([str(sidera), *arguments], cwd=work, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout

    listed = json.loads(run("recipes", "--json", "-q").splitlines()[-1])["recipes"]
    assert len(listed) == len(recipes)
    assert "lr" in run("keys", "fit", "-q")  # comments are read from the installed sources
    where = subprocess.run(
        [str(sidera.parent / "python"), "-c", "import sidera; print(sidera.__file__)"],
        cwd=work, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path) in where.stdout, "the checkout was imported, not the wheel"
    run("import", str(tmp_path / "events.csv"), "--out", "data")
    run("run", "generator", "--data", "data", "--out", "run", "--set", "fit.max_steps=40")
    answer = json.loads(
        run("recommend", "run", "--history", ",".join(facts["history"]), "--json", "-q").splitlines()[-1]
    )
    assert len(answer["items"]) == 10
    assert not answer["cold_start"]
    assert set(os.listdir(work)) == {"data", "run"}
