from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from page_checks import check_page
from ring_world import fake, make_dataset

from sidera.catalog.catalog import Catalog
from sidera.catalog.rq_kmeans import RQKMeans
from sidera.cli import main
from sidera.core import InputError
from sidera.data.split import leave_one_out
from sidera.eval.bootstrap import Estimate
from sidera.eval.config import EvalConfig
from sidera.eval.evaluate import evaluate
from sidera.eval.evaluation import save_evaluation
from sidera.pages.run import write_report

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
        quantizer=RQKMeans((torch.rand(5, 3), torch.rand(8, 3))),
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
    ("plot", "mark"),
    [
        ("Recall@10, history kept", "<circle"),
        ("NDCG@10, history left out", "<circle"),
        ("Training loss", "<path"),
        ("Validation during training", "<circle"),
        ("Recall@10 by target popularity", "<circle"),
        ("Recall@10 by history length", "<circle"),
        ("Code usage", "<path"),
        ("Latency of one request", "<path"),
    ],
)
def test_every_plot_is_there_with_something_drawn(page: str, plot: str, mark: str) -> None:
    svg = re.search(rf'<svg [^>]*aria-label="{re.escape(plot)}".*?</svg>', page, flags=re.DOTALL)
    assert svg is not None
    assert svg[0].count(mark) >= 1
    assert svg[0].count('class="tick') >= 3
    assert "nothing to draw" not in svg[0]


def test_every_figure_has_its_protocol(page: str) -> None:
    tables = re.findall(
        r"<h3>seen = (\w+).*?</table>\s*</div>\s*<p class=\"protocol\">(.*?)</p>", page, flags=re.DOTALL
    )
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
    assert page.count('class="protocol"') == 5  # headline, overview, two tables, slices


def test_results_come_first_then_examples_then_everything(page: str) -> None:
    order = [page.index(f"<h2>{heading}") for heading in ("Results", "Examples", "All figures", "Training", "Latency")]
    assert order == sorted(order)
    assert page.index('class="headline"') < order[0]


def test_numbers_samples_and_legality_are_shown(page: str) -> None:
    assert '<th scope="row">TIGER' in page
    assert "76.0 % of the best 50 beams are items that exist" in page
    assert page.count('<div class="card">') == 3
    assert "Item &lt;i" in page  # titles are text, never markup
    assert "5 of 5 used" in page
    assert re.search(r"sidera recommend \S+/demo\d*/tiger --history i\d\d", page)
    assert re.search(r"neighbour overlap@10</th><td>0.250", page)
    assert re.search(r"step: into validation</th><td>0.5", page)
    assert re.search(r"Items share semantic IDs in TIGER.*NDCG@5 0.\d{4} served, 0.\d{4} expected", page)


def test_the_page_stands_alone_and_is_well_formed(page: str) -> None:
    check_page(page)


def test_the_best_is_set_off_only_where_the_paired_interval_says_so(page: str) -> None:
    """TIGER is far above popularity at 10; a copy of it is not."""
    table = re.search(r"<h3>seen = keep.*?</table>", page, flags=re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr><th scope=\"row\">(\w+).*?</tr>", table[0], flags=re.DOTALL)
    assert rows == ["TIGER", "popularity"]
    assert table[0].count('class="best"') >= 5


def test_equal_runs_have_no_winner(tmp_path: Path) -> None:
    dataset = make_dataset()
    for name in ("one", "two"):
        found = evaluate(fake(dataset, hint=1.0), dataset, leave_one_out(dataset), "test", CONFIG, name="sasrec")
        save_evaluation(found, tmp_path / name / "evaluation", digest=name)
    text = write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "both.html").read_text()
    assert 'class="best"' not in text
    assert "SASRec (one)" in text
    assert "SASRec (two)" in text
    assert "with no clear difference from" in text


def test_the_baselines_beside_a_run_join_its_table(tmp_path: Path) -> None:
    dataset = make_dataset()
    split = leave_one_out(dataset)
    for folder, name, hint in (
        ("run/evaluation", "sidera", 1.0), ("run/baselines/evaluation/item_knn", "item_knn", 0.3),
        ("run/baselines/evaluation/popularity", "popularity", 0.1), ("other/evaluation", "item_knn", 0.4),
    ):  # fmt: skip
        found = evaluate(fake(dataset, hint=hint), dataset, split, "test", CONFIG, name=name)
        save_evaluation(found, tmp_path / folder, digest=folder)
    text = write_report(tmp_path / "run", tmp_path / "page.html").read_text()
    assert text.count("<small>baseline</small>") == 4  # two baselines, two tables
    headline = re.search(r'class="headline">(.*?)</p>', text)
    assert headline is not None
    words = "The generator finds # of 100 next items in its first ten, # [#, #] more than item-kNN."
    assert re.sub(r"\d+\.\d", "#", headline[1]) == words
    assert "<title>ring &lt;&amp;&gt; &#34;log&#34; · generator</title>" in text
    both = write_report([tmp_path / "run", tmp_path / "other"], tmp_path / "both.html").read_text()
    assert both.count("<small>baseline</small>") == 2  # an own run takes the place of the baseline of its name


def test_a_run_that_was_not_trained_says_so(tmp_path: Path) -> None:
    dataset = make_dataset()
    config = EvalConfig(ks=(5,), bootstrap=5, latency_rows=0, free_rows=0, samples=0, seen=("filter",))
    evaluation = evaluate(fake(dataset), dataset, leave_one_out(dataset), "test", config)
    save_evaluation(evaluation, tmp_path / "evaluation", digest="x")
    text = write_report(tmp_path, tmp_path / "out" / "page.html").read_text()
    assert "No training log" in text
    assert "Latency was not measured" in text
    assert "Recall@5 by target popularity" in text
    assert "No examples were kept" in text
    check_page(text)


def test_folders_without_an_evaluation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation"):
        write_report(tmp_path, tmp_path / "page.html")
    with pytest.raises(InputError, match="no run folder"):
        write_report(tmp_path / "none", tmp_path / "page.html")


def test_runs_of_other_rows_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset()
    for name, rows in (("one", None), ("two", 20)):
        config = EvalConfig(bootstrap=5, latency_rows=0, free_rows=0, max_rows=rows)
        found = evaluate(fake(dataset), dataset, leave_one_out(dataset), "test", config)
        save_evaluation(found, tmp_path / name / "evaluation", digest=name)
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["report", *runs, "--out", str(tmp_path / "both.html")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sidera report: runs cannot be compared: rows is 60 in ")
    assert said.count("\n") == 1
    assert main(["report", runs[0], runs[0]]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert main(["report", runs[0], "--out", str(tmp_path / "page.pdf")]) == 2
    assert "is no page" in capsys.readouterr().err
    assert main(["report", runs[0]]) == 0
    check_page((tmp_path / "one" / "report.html").read_text())


ATTACK = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'


def test_what_users_wrote_is_text(tmp_path: Path) -> None:
    """Names, titles, keys and folders with markup, a title of 20,000 letters, one from right to left."""
    dataset = make_dataset()
    titles = [ATTACK, "ا" * 30, "long " * 4000, None] * 10
    keys = np.array([f"{ATTACK}{place}" for place in range(40)], dtype=object)
    items = pa.table({"key": keys.tolist(), "title": titles})
    dataset = dataclasses.replace(dataset, name=ATTACK, item_keys=keys, items=items)
    found = evaluate(fake(dataset, hint=1.0), dataset, leave_one_out(dataset), "test", CONFIG, name=ATTACK)
    save_evaluation(found, tmp_path / "<b>run" / "evaluation", digest="x")
    text = write_report(tmp_path / "<b>run", tmp_path / "page.html").read_text()
    check_page(text)
    assert "<img" not in text
    assert "<b>run" not in text
    assert "{{ 7 * 7 }}" in text  # never a template
    assert 'dir="auto"' in text
    assert len(text) < 300_000


def test_no_hits_one_item_and_missing_figures(tmp_path: Path) -> None:
    dataset = make_dataset()
    found = evaluate(fake(dataset, hint=1.0), dataset, leave_one_out(dataset), "test", CONFIG)
    nothing = Estimate(0.0, 0.0, 0.0)
    unknown = Estimate(float("nan"), float("nan"), float("nan"))
    for name, estimate in (("zero", nothing), ("unknown", unknown)):
        metrics = {seen: dict.fromkeys(part, estimate) for seen, part in found.metrics.items()}
        save_evaluation(
            dataclasses.replace(found, metrics=metrics, slices={}), tmp_path / name / "evaluation", digest="x"
        )
        text = write_report(tmp_path / name, tmp_path / f"{name}.html").read_text()
        check_page(text)
        assert not re.search(r"\bnan\b", text, flags=re.IGNORECASE)
        assert "No slices were measured" in text
    one = make_dataset(num_users=4, num_items=2)
    found = evaluate(fake(one, hint=1.0), one, leave_one_out(one), "test", CONFIG)
    save_evaluation(found, tmp_path / "item" / "evaluation", digest="x")
    check_page(write_report(tmp_path / "item", tmp_path / "item.html").read_text())
