"""The CUDA script without a GPU: it finds a broken body, a failure hides nothing, and it says that no GPU was there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from test_bare import GUARD

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu
    import gpu_bodies
    import gpu_models
    import gpu_searches

    return gpu, gpu_bodies, gpu_models, gpu_searches


ATTENTION = ("attention_of_histories", "attention_inside_a_stream", "t5_attention")


def only(gpu: Any, monkeypatch: pytest.MonkeyPatch, *sections: str) -> Any:
    monkeypatch.setattr(gpu, "SECTIONS", tuple(getattr(gpu, name) for name in sections))
    run = gpu.Run("cpu", tiny=True, seconds=600)
    gpu.go(run)
    return run


def test_a_broken_body_is_found_and_the_others_are_looked_at(
    modules: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, bodies, _, searches = modules
    attend = bodies.attention

    def off(*arguments: Any, **settings: Any) -> torch.Tensor:
        return attend(*arguments, **settings) * 1.001

    def broken(*arguments: Any, **settings: Any) -> Any:
        raise ValueError("no such kernel")

    monkeypatch.setattr(bodies, "attention", off)
    monkeypatch.setattr(searches, "beam_search", broken)
    run = only(gpu, monkeypatch, "bodies")
    found = {failure["what"]: failure["why"] for failure in run.failures}
    assert "error 1.00e-03, allowed 0.0001" in found["attention_of_histories f32"]
    assert "ValueError: no such kernel" in found["beams f32"]
    assert {name.split()[0] for name in found} == {*ATTENTION, "beams"}
    assert len(run.figures["bodies"]) > 15


def test_a_model_that_learns_otherwise_on_the_device_is_found(
    modules: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = modules[2]
    honest = models.curve

    def wrong_in_half(model: Any, batches: Any, device: str, precision: str) -> list[float]:
        losses = honest(model, batches, device, precision)
        return [2 * loss for loss in losses] if precision == "bf16" else losses

    monkeypatch.setattr(models, "curve", wrong_in_half)
    found = models.train("sidera", "cpu", 3)
    assert len(found["problems"]) == 1
    assert found["problems"][0].startswith("bf16: ")


def test_a_section_without_time_says_so(modules: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = modules[0]
    monkeypatch.setattr(gpu, "SECTIONS", (gpu.answers,))
    run = gpu.Run("cpu", tiny=True, seconds=0.0)
    gpu.go(run)
    assert {entry["why"] for entry in run.could_not} == {"its share of the time was up"}
    assert len(run.could_not) == 5
    assert not run.figures


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the script itself")
def test_bare_and_without_a_gpu_it_checks_itself_and_says_so(tmp_path: Path) -> None:
    """Under the guard of ``tests/test_bare.py``: torch, numpy, pyarrow and safetensors alone. 20 CPU-seconds."""
    call = f"import runpy\nsys.argv = ['benchmarks/gpu.py', '--quick', '--out', {str(tmp_path)!r}]\n"
    call += f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
    call += f"runpy.run_path({str(BENCHMARKS / 'gpu.py')!r}, run_name='__main__')\n"
    code = GUARD.replace("from sidera.cli import main\n\nsys.exit(main(sys.argv[1:]))\n", call)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    record = json.loads(found.stdout.splitlines()[-1])
    assert found.returncode == 0, record["context"]["failures"]
    assert "no GPU" in found.stdout.splitlines()[0]
    assert record["pass"] is None
    assert record["context"]["could_not"][0]["what"] == "everything on a CUDA device"
    assert record["value"]["checks"] > 55
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")) == record
