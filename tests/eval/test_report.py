from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from ring_world import fake, make_dataset

from sidera.catalog.catalog import Catalog
from sidera.catalog.rq_kmeans import RQCodebooks
from sidera.core import InputError
from sidera.data.split import leave_one_out
from sidera.eval.config import EvalConfig
from sidera.eval.evaluate import evaluate
from sidera.eval.evaluation import save_evaluation
from sidera.eval.report import write_report

CONFIG = EvalConfig(bootstrap=30, latency_rows=8, free_rows=20, samples=3)


def make_run(folder: Path) -> Path:
    """A run folder as `sidera run` leaves it, of fakes."""
    dataset = make_dataset()
    split = leave_one_out(dataset)
    for name, kind, hint in (("tiger", "generator", 1.0), ("popularity", "scorer", 0.3)):
        recommender = fake(dataset, kind=kind, hint=hint, share=2 if kind == "generator" else 1)
        evaluation = evaluate(recommender, dataset, split, "test", CONFIG, name=name)
        save_evaluation(evaluation, folder / name / "evaluation", digest=name)
    num = dataset.num_items
    codes = np.stack([np.arange(num) // 8, np.arange(num) % 8], axis=1).astype(np.int32)
    Catalog(
        item_keys=dataset.item_keys.astype(str),
        codes=codes,
        level_sizes=(5, 8),
        codebooks=RQCodebooks((torch.rand(5, 3), torch.rand(8, 3))),
        collision="share",
        codebook_id="c0de",
        items_version=1,
        removed=np.zeros(num, dtype=bool),
        popularity=np.arange(num),
        titles=[None] * num,
        report={"neighbour_overlap@10": 0.25, "step": {"into_validation": 0.5}, "levels": [{}]},
    ).save(folder / "tiger" / "catalog")
    lines = [{"event": "train", "step": step, "epoch": 0, "loss": 5 / step, "lr": 1e-3} for step in range(1, 30)]
    lines += [
        {"event": "eval", "step": step, "ndcg@10": 0.001 * step, "filter_ndcg@10": 0.002 * step} for step in (10, 20)
    ]
    (folder / "tiger" / "train").mkdir()
    (folder / "tiger" / "train" / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(tmp_path_factory.mktemp("demo"))
    return write_report(run, run / "report.html").read_text()


@pytest.mark.parametrize(
    "plot",
    [
        "Training loss",
        "Validation during training",
        "recall@10 by target popularity (seen = keep)",
        "recall@10 by history length (seen = keep)",
        "Code usage",
        "Latency of one request",
    ],
)
def test_every_plot_is_there_with_something_drawn(page: str, plot: str) -> None:
    svg = re.search(rf'<svg [^>]*aria-label="{re.escape(plot)}".*?</svg>', page, flags=re.DOTALL)
    assert svg is not None
    assert svg[0].count("<path") > 5


def test_every_table_of_accuracies_has_its_protocol(page: str) -> None:
    tables = re.findall(r"<h3>seen = (\w+).*?</table></div><p class='protocol'>(.*?)</p>", page, flags=re.DOTALL)
    assert [seen for seen, _ in tables] == ["keep", "filter"]
    for seen, protocol in tables:
        for part in (
            f"seen = {seen}",
            "leave-one-out, test",
            "full ranking over 40 items",
            "item-level hits",
            "beam 50",
        ):
            assert part in protocol
    assert page.count("class='protocol'") == 3  # two tables and the slices


def test_numbers_samples_and_legality_are_shown(page: str) -> None:
    assert ">tiger</th>" in page
    assert ">popularity</th>" in page
    assert "76.0 % of the best 50 beams are items that exist" in page
    assert page.count("<div class='card'>") == 3
    assert "Item &lt;i" in page  # titles are text, never markup
    assert "5 of 5 used" in page
    assert re.search(r"sidera recommend \S+/demo\d*/tiger --history i\d\d", page)
    assert "neighbour overlap@10</th><td>0.250" in page
    assert "step: into validation</th><td>0.5" in page
    assert re.search(r"Items share semantic IDs in tiger.*ndcg@5 0.\d{4} served, 0.\d{4} expected", page)


def test_the_page_stands_alone_and_is_well_formed(page: str) -> None:
    assert not re.search(r"(src|href)=[\"'](?!#)", page)
    assert "http" not in page
    assert "<script" not in page
    stack: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "br"):
                stack.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Balance().feed(page)
    assert stack == []
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)) <= {(name, "") for name in ids} | {
        ("", name) for name in ids
    }


def test_a_run_that_was_not_trained_says_so(tmp_path: Path) -> None:
    dataset = make_dataset()
    config = EvalConfig(ks=(5,), bootstrap=5, latency_rows=0, free_rows=0, samples=0, seen=("filter",))
    evaluation = evaluate(fake(dataset), dataset, leave_one_out(dataset), "test", config)
    save_evaluation(evaluation, tmp_path / "evaluation", digest="x")
    text = write_report(tmp_path, tmp_path / "out" / "page.html").read_text()
    assert "No training log" in text
    assert "Latency was not measured" in text
    assert "recall@5 by target popularity (seen = filter)" in text


def test_folders_without_an_evaluation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation"):
        write_report(tmp_path, tmp_path / "page.html")
    with pytest.raises(InputError, match="no run folder"):
        write_report(tmp_path / "none", tmp_path / "page.html")
