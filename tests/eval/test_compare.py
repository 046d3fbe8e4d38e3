from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ring_world import fake, make_dataset

from sidera.core import InputError
from sidera.data.split import leave_one_out
from sidera.eval.compare import compare
from sidera.eval.config import EvalConfig
from sidera.eval.evaluate import evaluate
from sidera.eval.evaluation import Evaluation, save_evaluation
from sidera.eval.verdict import Verdict, against_best

CONFIG = EvalConfig(ks=(5, 10), bootstrap=20, latency_rows=0, free_rows=0)
DATASET = make_dataset(num_users=200)
SPLIT = leave_one_out(DATASET)


def run(seed: int = 0, hint: float = 0.0, name: str = "random", **config: object) -> Evaluation:
    return evaluate(fake(DATASET, seed=seed, hint=hint), DATASET, SPLIT, "test", replace(CONFIG, **config), name=name)


def test_a_better_run_is_found_better(tmp_path: Path) -> None:
    for name, evaluation in (("good", run(hint=0.5)), ("bad", run())):
        save_evaluation(evaluation, tmp_path / name, digest=name)
    found = compare(tmp_path / "good", tmp_path / "bad")
    assert set(found.tests) == {
        (s, m) for s in ("keep", "filter") for m in ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "mrr@10")
    }
    test = found.tests["keep", "recall@10"]
    assert test.significant
    assert test.difference > 0
    assert test.first == pytest.approx(run(hint=0.5).value("recall@10"))
    for verdict in found.verdicts:  # one a seen mode
        assert (verdict.outcome, verdict.metric) == ("beats", "ndcg@10")
        share = found.tests[verdict.seen, "ndcg@10"]
        assert verdict.percent == pytest.approx(100 * (share.first / share.second - 1))
    assert len(found.verdicts) == 2
    text = found.to_text()
    assert re.search(r"verdict: \S+good beats \S+bad by \d+\.\d % \[\d+\.\d, \d+\.\d\] in NDCG@10, history kept", text)
    assert "200 rows" in text
    assert f"{test.difference:+.4f} *" in text
    assert str(tmp_path / "good") in text


def test_two_random_runs_are_not_told_apart() -> None:
    found = compare(run(seed=1), run(seed=2))
    assert not found.tests["keep", "ndcg@10"].significant
    assert found.verdicts[0].outcome == "undecided"
    assert "undecided between random and random: " in found.to_text()


def test_a_verdict_goes_against_the_best_counter() -> None:
    own, weak, strong = run(hint=0.3, name="own"), run(name="weak"), run(hint=0.9, name="strong")
    for counters, outcome, words in (
        ([weak, strong], "does not beat", "own does not beat the best counter (strong): "),
        ([weak], "beats", "own beats the best counter (weak) by "),
        ([own], "does not beat", "0.0 % [0.0, 0.0] below it"),
    ):
        found = against_best(own, counters, 10)
        assert [one.outcome for one in found] == [outcome] * 2
        assert words in found[0].to_text()
    assert against_best(own, [], 10) == []
    assert "whose figure is 0" in Verdict("a", "b", "ndcg@10", "keep", "beats", None, None, None).to_text()


def test_runs_on_other_rows_are_refused_naming_both() -> None:
    with pytest.raises(InputError, match=r"rows is 200 in first and 50 in second"):
        compare(run(name="first"), run(name="second", max_rows=50))
    configs = (replace(CONFIG, max_rows=50, seed=seed) for seed in (0, 1))
    same_size = [
        evaluate(fake(DATASET), DATASET, SPLIT, "test", config, name=name)
        for name, config in zip(("first", "second"), configs, strict=True)
    ]
    with pytest.raises(InputError, match=r"row_digest is .* in first and .* in second"):
        compare(*same_size)
    valid = evaluate(fake(DATASET), DATASET, SPLIT, "valid", CONFIG, name="second")
    with pytest.raises(InputError, match=r"which is 'test' in first and 'valid' in second"):
        compare(run(name="first"), valid)


def test_runs_without_a_common_list_are_refused() -> None:
    with pytest.raises(InputError, match="share no seen mode"):
        compare(run(seen=("keep",)), run(seen=("filter",)))
    with pytest.raises(InputError, match="share no seen mode"):
        compare(run(), run(ks=(7,)))


def test_other_beams_are_compared_and_said() -> None:
    generator = evaluate(fake(DATASET, kind="generator"), DATASET, SPLIT, "test", CONFIG)
    assert compare(generator, run()).notes == ("lists for k = 5, 10: A beam 50, B exact",)
    assert "note: lists for k" in compare(generator, run()).to_text()


def test_pairing_is_by_row(tmp_path: Path) -> None:
    """The same ranks in another order are another run."""
    one = run(hint=0.3)
    order = np.random.default_rng(0).permutation(len(one.ranks))
    shuffled = replace(one, ranks=one.ranks.take(order))
    test = compare(one, shuffled).tests["keep", "recall@10"]
    assert test.difference == pytest.approx(0)
    assert test.wins == test.losses > 0
