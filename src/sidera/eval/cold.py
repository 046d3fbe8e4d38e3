"""What a model answers to new users and of new items, measured on questions that a training could not see.

    measured = measure(recommender, dataset, questions, first_new, k=50, beam=128, filter_seen=False)
    record = summary({"tiger": measured, "content_knn": other}, ...)

A question is a history of a user whom the training did not know. "cold": the answer is an item that came after it;
otherwise the answer is a known item, and questions are grouped by the length of the history. Intervals are over users.

R rows · k list length · N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sidera.console import table
from sidera.data.dataset import Dataset
from sidera.data.split import EvalRows
from sidera.data.withheld import without_new
from sidera.eval.bootstrap import intervals, paired_test
from sidera.eval.metrics import TargetRanks, row_metrics, target_ranks
from sidera.eval.ranking import Ranker, questions, to_numpy

COLD = "cold"  # the group whose answers are new items
SHORT = 10  # the short list
BATCH = 128  # histories ranked at once


@dataclass(frozen=True)
class Measured:
    """Of one model: for every group of questions where the answers stood, and how many of its slots new items got."""

    ranks: Mapping[str, np.ndarray]  # group -> (R,) place of the answer in the list of k, 0: not in it
    new_share: float  # of the slots of all lists of SHORT
    new_share_wide: float  # of those of k

    def values(self, group: str, k: int) -> dict[str, np.ndarray]:
        """metric -> (R,)"""
        rank = self.ranks[group].astype(np.int32)
        ranks = TargetRanks(rank, rank.copy(), np.ones_like(rank), k)
        found = row_metrics(ranks, sorted({min(SHORT, k), k}))
        return {name: values for name, values in found.items() if name.startswith(("recall", "ndcg"))}


def measure(
    recommender: Ranker, dataset: Dataset, asked: Mapping[str, EvalRows], first_new: int, k: int, beam: int,
    filter_seen: bool, reads_new: bool = True,
) -> Measured:  # fmt: skip
    """Ask every question for a list of ``k``. A model that does not read new items (``reads_new``) is asked without
    them in the histories, and finds nothing where nothing is left."""
    found, slots = {}, np.zeros(4)  # new and all, short and wide
    for group, rows in asked.items():
        found[group] = np.zeros(len(rows), dtype=np.int32)
        read, here = (dataset, rows) if reads_new else without_new(dataset, rows, first_new)
        places = np.flatnonzero(here.ends > here.starts)
        for index, batch in questions(recommender, read, here.take(places), BATCH) if len(places) else ():
            item_ids = to_numpy(recommender.rank(batch, k, beam=beam, filter_seen=filter_seen).item_ids)
            found[group][places[index]] = target_ranks(item_ids, rows.target_ids[places[index]]).rank
            for place, lists in ((0, item_ids[:, :SHORT]), (2, item_ids)):
                slots[place : place + 2] += (lists >= first_new).sum(), (lists >= 0).sum()
    return Measured(found, float(slots[0] / max(1, slots[1])), float(slots[2] / max(1, slots[3])))


def summary(
    models: Mapping[str, Measured], asked: Mapping[str, EvalRows], k: int, num_items: int, num_new: int,
    against: str, resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """Figures with intervals, a row a model and "random" as the last one; cold recall is also given as a multiple of a
    uniform choice (k/N), and paired with the model ``against``."""
    rows: dict[str, Any] = {}
    chance = k / num_items
    for name, one in models.items():
        groups = {}
        for group, questions_of in asked.items():
            if len(questions_of):
                estimates = intervals(one.values(group, k), questions_of.user_ids, resamples=resamples)
                groups[group] = {metric: asdict(estimate) for metric, estimate in estimates.items()}
        row: dict[str, Any] = {"groups": groups, "new_share": one.new_share, f"new_share@{k}": one.new_share_wide}
        row["times_chance"] = groups[COLD][f"recall@{k}"]["value"] / chance
        if name != against and against in models:
            hits = [each.values(COLD, k)[f"recall@{k}"] for each in (one, models[against])]
            row["against"] = asdict(paired_test(hits[0], hits[1], asked[COLD].user_ids, resamples=resamples))
        rows[name] = row
    return {
        "k": k, "num_items": num_items, "num_new_items": num_new, "chance": chance,
        "new_item_share": num_new / num_items, "questions": {group: len(each) for group, each in asked.items()},
        "against": against, "models": rows,
    }  # fmt: skip


def quota_cost(
    without: Measured, with_quota: Measured, asked: Mapping[str, EvalRows], k: int, resamples: int
) -> dict[str, Any]:
    """Recall@k with the quota less that without it, paired: of new items, and of known ones after any history."""
    groups = {"new": [COLD], "known": [group for group in asked if group != COLD]}
    found = {}
    for name, parts in groups.items():
        users = np.concatenate([asked[group].user_ids for group in parts])
        hits = [
            np.concatenate([one.values(group, k)[f"recall@{k}"] for group in parts]) for one in (with_quota, without)
        ]
        if len(users):
            found[name] = asdict(paired_test(hits[0], hits[1], users, resamples=resamples))
    return found


def cold_rows(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of a record: its head, and a row a model with a uniform choice as the last."""
    k, groups = record["k"], [name for name in record["questions"] if name != COLD]
    head = ["model", f"new items, recall@{k}", "95 % interval", "x uniform", f"new items in {k}"]
    head += [f"known, after {group}" for group in groups]
    rows = []
    for name, row in record["models"].items():
        cold = row["groups"][COLD][f"recall@{k}"]
        cells = [name, f"{cold['value']:.4f}", f"[{cold['low']:.4f}, {cold['high']:.4f}]", f"{row['times_chance']:.1f}"]
        cells.append(f"{100 * row[f'new_share@{k}']:.1f} %")
        for group in groups:
            found = row["groups"].get(group)
            cells.append(f"{found[f'recall@{min(SHORT, k)}']['value']:.4f}" if found else "")
        rows.append(cells)
    chance = record["chance"]
    uniform = ["uniform", f"{chance:.4f}", "", "1.0", f"{100 * record['new_item_share']:.1f} %"]
    rows.append([*uniform, *(f"{min(SHORT, k) / record['num_items']:.4f}" for _ in groups)])
    return head, rows


def cold_words(record: Mapping[str, Any]) -> list[str]:
    """What was asked, and how the model stands to content-kNN, in sentences."""
    asked, model = record["questions"], record["model"]
    known = sum(asked.values()) - asked[COLD]
    words = [
        f"{record['num_new_items']:,} of {record['num_items']:,} items came after the training; {asked[COLD]:,}"
        f" questions about them and {known:,} about known items, by users whom the training did not know."
    ]
    paired = record["models"][model].get("against")
    if paired:
        gap = _gap(paired)
        outcome = "more than" if paired["low"] > 0 else "fewer than" if paired["high"] < 0 else "undecided against"
        words.append(f"New items found by {model}, {outcome} {record['against']}: {gap} of 100, paired.")
    if cost := record.get("quota"):
        changes = " and ".join(f"{_gap(test)} of 100 {name} items" for name, test in cost.items())
        words.append(f"The quota changes Recall@{record['k']} by {changes}.")
    return words


def _gap(test: Mapping[str, float]) -> str:
    return f"{100 * test['difference']:+.1f} [{100 * test['low']:+.1f}, {100 * test['high']:+.1f}]"


def cold_lines(record: Mapping[str, Any]) -> str:
    """The record for the terminal."""
    head, rows = cold_rows(record)
    return "\n".join([*(f"cold: {sentence}" for sentence in cold_words(record)), table(head, rows, indent="  ")])
