from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from ring_world import fake

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.split import Split
from sidera.eval.config import EvalConfig
from sidera.eval.evaluate import evaluate
from sidera.eval.evaluation import protocol_line

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from result_tables import result_file, results_table, update_document

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
CONFIG = EvalConfig(ks=(5, 10), bootstrap=20, latency_rows=0, free_rows=0, samples=0)


@pytest.fixture(scope="module")
def results(dataset: Dataset, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [
        evaluate(fake(dataset, seed=seed, hint=hint), dataset, split, "test", CONFIG, name=name, info={"seed": seed})
        for name, hint, seeds in (("good", 0.4, (1, 2, 3)), ("random", 0.0, (1,)))
        for seed in seeds
    ]
    file = tmp_path_factory.mktemp("results") / "ring.json"
    file.write_text(json.dumps(result_file("Ring", runs, command="make ring", version="0")))
    return file


def test_seeds_become_mean_and_deviation_and_single_runs_an_interval(results: Path) -> None:
    rows = json.loads(results.read_text())["rows"]
    values = [row["metrics"]["keep"]["recall@10"]["value"] for row in rows[:3]]
    mean = sum(values) / 3
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    single = rows[3]["metrics"]["keep"]["recall@10"]
    lines = results_table([results]).splitlines()
    good, random = next(line for line in lines if "| good" in line), next(line for line in lines if "| random" in line)
    assert good.startswith(f"| good | train | {mean:.4f} ± {deviation:.4f} |")
    assert good.endswith("| 3 |")
    assert random.startswith(f"| random | train | {single['value']:.4f} ± {(single['high'] - single['low']) / 2:.4f} |")
    assert "R@10 keep" in lines[2]
    assert "full ranking over 40 items" in lines[0]


def test_a_document_is_updated_between_its_markers_and_checked(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"# before\n{BEGIN}\nold numbers \\1\n{END}\nafter\n")
    assert not update_document(document, [results], check=True)
    assert "old numbers" in document.read_text()
    assert not update_document(document, [results])
    assert update_document(document, [results], check=True)
    text = document.read_text()
    assert "old numbers" not in text
    assert text.startswith(f"# before\n{BEGIN}\n**Ring**")
    assert text.endswith(f"{END}\nafter\n")


def test_what_cannot_be_a_table_is_refused(results: Path, tmp_path: Path, dataset: Dataset, split: Split) -> None:
    document = tmp_path / "README.md"
    document.write_text("no markers")
    with pytest.raises(InputError, match="no place for the table"):
        update_document(document, [results])
    with pytest.raises(InputError, match="cannot read result file"):
        results_table([tmp_path / "none.json"])
    (tmp_path / "odd.json").write_text('{"title": 1}')
    with pytest.raises(InputError, match="not a result file"):
        results_table([tmp_path / "odd.json"])
    with pytest.raises(InputError, match="no evaluations"):
        result_file("empty", [])
    test, valid = (evaluate(fake(dataset), dataset, split, which, CONFIG, name=which) for which in ("test", "valid"))
    with pytest.raises(InputError, match="which is 'test' in test and 'valid' in valid"):
        result_file("mixed", [test, valid])


def test_the_protocol_line_says_what_a_reader_must_know(dataset: Dataset, split: Split) -> None:
    config = EvalConfig(bootstrap=5, latency_rows=0, free_rows=0, max_rows=20)
    generator = evaluate(fake(dataset, kind="generator"), dataset, split, "valid", config)
    scorer = evaluate(fake(dataset), dataset, split, "valid", config)
    line = protocol_line(generator.protocol, scorer.protocol)
    for part in (
        "leave-one-out, valid",
        "20 of 60 rows",
        "full ranking over 40 items",
        "item-level hits",
        "seen = keep and filter",
        "beam 50 for @5/@10, beam 128 for @50, scorers exact",
        "newest 20 events read",
    ):
        assert part in line
