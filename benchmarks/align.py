"""Claim `align`: the recipe gains true utility and returns over every control, in every world; what it costs.

    python benchmarks/align.py [--quick] [--worlds easy hard] [--seeds 0 1 2] [--training-seeds 0 1]

`recipes/world/align.toml`, untouched, on the logs of both worlds: OneRec-V2 trained on long views, then aligned. The
controls are trained as the arms are (same steps, learning rate, batches); continued SFT *is* long-view SFT here, as
long views are the recipe's positives. Users who taught neither the reward nor its judge are served. Differences are
paired by user inside a world; the two training seeds of a world (reward and alignment; the pretrained policy is shared)
are averaged, with the mean of their half-widths, which is never too narrow however they are correlated.
``--quick`` walks the whole way in a minute, with trainings far too short to gain: it shows that the way is there.

Other claims from the same runs: `safe` loses no recall, coverage or legality; reranking by the reward's network, alone
and after alignment, with the CPU time of an answer; a quota of slots lifts cold items.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator
from online_arms import ROOT, Arm, bench_folder, train_arm, world_log

CONTROLS = ("sft", "rsft")
ARMS = ("aggressive", "safe")
BAR_GAP = {"easy": 10.0, "hard": 5.0}
SEEDS, TRAINING_SEEDS = (0, 1, 2), (0, 1)
METRICS = ("utility", "returned_1", "watch_time", "session_length", "dislikes")
CANDIDATES = (48, 64)  # of the beams that are reranked in the first cell of each world, for their cost
COLD_SHARE = 0.015  # of slots, kept for items that the log never showed
QUICK_LOG = {"users": 250, "days": 4}
QUICK = ("fit.max_steps=50", "align.steps=10", "align.check_every=10", "rewards.epochs=1", "eval.valid_rows=200")


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__, flags)
    single_thread()
    cells: list[dict[str, Any]] = []
    for name in ("easy",) if options.quick else options.worlds:
        for seed in (0,) if options.quick else options.seeds:
            for training_seed in (0,) if options.quick else options.training_seeds:
                cells.append(cell(name, seed, training_seed, options.quick))
                print(json.dumps({key: cells[-1][key] for key in ("world", "seed", "training_seed", "gap_closed, %")}))
    worlds = summary(cells)
    report(worlds, cells, options.quick)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worlds", nargs="+", default=("easy", "hard"), choices=("easy", "hard"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="worlds")
    parser.add_argument("--training-seeds", type=int, nargs="+", default=TRAINING_SEEDS)


def cell(name: str, seed: int, training_seed: int, quick: bool) -> dict[str, Any]:
    """One world, one training seed: everything trained, served and measured; kept beside the log and reused."""
    from sidera.align.recipe import AlignRecipe
    from sidera.align.run import align_recipe
    from sidera.engine.serving import ServeConfig
    from sidera.lab.alignment import serve_policies, usual_arms
    from sidera.pages.alignment import write_alignment_page

    data = world_log(name, seed, **(QUICK_LOG if quick else {}))
    out = bench_folder() / f"{name}-{seed}" / f"align-{training_seed}{'-quick' if quick else ''}"
    overrides = [f"fit.seed={seed}", f"align.seed={training_seed}", f"rewards.seed={training_seed}"]
    recipe = AlignRecipe.read(ROOT / "recipes" / "world" / "align.toml", [*overrides, *(QUICK if quick else ())])
    shared = None if quick else train_arm("onerec_v2", Arm("world/onerec_v2.toml"), data, seed)  # by training seeds
    found = align_recipe(recipe, data, out, start=shared)
    arms = usual_arms(found.runs, ("pretrained", *ARMS) if training_seed == 0 else ())
    if training_seed == 0 and not quick:
        runs = found.runs
        for number in CANDIDATES if seed == 0 else ():
            wide = ServeConfig(rerank=number, rerank_from="beam", beam=number)
            arms[f"pretrained+rerank beam {number}"] = (runs["pretrained"], wide)
        arms["safe+cold quota"] = (runs["safe"], ServeConfig(cold_share=COLD_SHARE))
    others = [(control, arm) for control in CONTROLS[1:] for arm in ARMS]
    if training_seed == 0:
        others += [("pretrained+rerank", f"{arm}+rerank") for arm in ARMS] + [("safe", "pretrained+rerank")]
    if "safe+cold quota" in arms:
        others.append(("safe", "safe+cold quota"))
    others += [("aggressive", arm) for arm in arms if arm.startswith("pretrained+rerank beam")]
    versions = {policy: version_of(run) for policy, run in found.runs.items()} | {"served": list(arms)}
    kept = out / "align" / "cell.json"
    if kept.is_file() and (record := json.loads(kept.read_text(encoding="utf-8")))["versions"] == versions:
        return record
    online = serve_policies(arms, found.audience, data, "sft", users=40 if quick else None, pairs=others, say=print)
    online.save(out / "align" / "online.json")
    write_alignment_page(found.record, online, out / "align" / "alignment.html")
    record = {"world": name, "seed": seed, "training_seed": training_seed, "versions": versions}
    record |= figures(found.record, online, arms)
    kept.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def version_of(run: Path) -> str:
    from sidera import artifacts

    return artifacts.read_manifest(run / "model", "model").digest


def figures(record: dict[str, Any], online: Any, arms: dict[str, Any]) -> dict[str, Any]:
    """What the claims are made of, in per cent with half-widths where it is a difference."""
    from sidera.lab.alignment import gap_closed
    from sidera.lab.online import OnlineTest

    assert isinstance(online, OnlineTest)
    return {
        "users": online.setting["users"],
        "levels": {
            arm: {m: round(online.levels[arm][m][0], 4) for m in (*METRICS, "cold_share")} for arm in online.arms
        },
        "against sft, %": {arm: shown(online.differences[arm]) for arm in online.arms if arm != "sft"},
        "gap_closed, %": {arm: round(100 * gap_closed(online, arm), 2) for arm in arms},
        "ms_per_answer": online.setting["ms_per_answer"],
        "figures": {name: one["figures"] for name, one in record["policies"].items()},
        "recall_differences": {name: one["recall_differences"] for name, one in record["policies"].items()},
        "stopped": {name: one["training"].get("stopped", "") for name, one in record["policies"].items()},
        "cpu_seconds": {name: one["training"].get("cpu_seconds") for name, one in record["policies"].items()},
        "pairs, %": {pair: shown(differences) for pair, differences in online.pairs.items()},
    }


def shown(differences: Any) -> dict[str, list[float]]:
    return {
        metric: [round(100 * differences[metric].relative, 2), round(100 * differences[metric].relative_half_width, 2)]
        for metric in METRICS
    }


def summary(cells: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """world and seed -> arm -> control -> metric -> [difference, half-width] and gaps, training seeds averaged."""
    worlds: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(f"{one['world']} {one['seed']}" for one in cells):
        same = [one for one in cells if f"{one['world']} {one['seed']}" == label]
        against = {
            arm: {
                control: {
                    metric: averaged([differences_of(one, arm, control)[metric] for one in same]) for metric in METRICS
                }
                for control in CONTROLS
            }
            for arm in ARMS
        }
        worlds[label] = {
            "against": against,
            "gap_closed, %": {arm: mean([one["gap_closed, %"][arm] for one in same]) for arm in ARMS},
            "safe": safety(same),
        }
    return worlds


def differences_of(one: dict[str, Any], arm: str, control: str) -> dict[str, list[float]]:
    return one["against sft, %"][arm] if control == "sft" else one["pairs, %"][f"{arm} less {control}"]


def averaged(rows: list[list[float]]) -> list[float]:
    """Differences of the same users under two trainings: the mean, and the mean half-width, an upper bound."""
    return [mean([value for value, _ in rows]), mean([half for _, half in rows])]


def mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


def safety(same: list[dict[str, Any]]) -> dict[str, Any]:
    """What the safe weight costs against continued SFT."""
    recall = {
        label: averaged([one["recall_differences"]["safe"][label] for one in same]) for label in ("long_view", "like")
    }
    shares = {
        figure: mean([one["figures"]["safe"][figure] / one["figures"]["sft"][figure] for one in same])
        for figure in ("coverage", "legality_sample", "legality_beam")
    }
    lost = [label for label, (gap, half) in recall.items() if gap < -half]
    return {"recall@50": recall, "share of the control's": shares, "detected losses": lost}


def report(worlds: dict[str, dict[str, Any]], cells: list[dict[str, Any]], quick: bool) -> None:
    """The claim's line: the best-gaining arm over the controls, and the other claims beside it."""
    gains = {
        arm: {
            metric: all(
                found["against"][arm][control][metric][0] > found["against"][arm][control][metric][1]
                for found in worlds.values()
                for control in CONTROLS
            )
            for metric in ("utility", "returned_1")
        }
        for arm in ARMS
    }
    gaps = {arm: {label: found["gap_closed, %"][arm] for label, found in worlds.items()} for arm in ARMS}
    recipe = ARMS[0]
    closed = all(gap >= BAR_GAP[label.split()[0]] for label, gap in gaps[recipe].items())
    safe = {label: found["safe"] for label, found in worlds.items()}
    value = {
        "recipe": recipe,
        "utility against each control, %": {
            label: {control: found["against"][recipe][control]["utility"] for control in CONTROLS}
            for label, found in worlds.items()
        },
        "returns against each control, %": {
            label: {control: found["against"][recipe][control]["returned_1"] for control in CONTROLS}
            for label, found in worlds.items()
        },
        "intervals above 0 in every world": gains,
        "gap to the oracle closed, %": gaps,
        "safe": {
            "no recall loss detected": all(not one["detected losses"] for one in safe.values()),
            "coverage of the control's, least": min(one["share of the control's"]["coverage"] for one in safe.values()),
            "free legality of the control's, least": min(
                one["share of the control's"]["legality_sample"] for one in safe.values()
            ),
        },
        "rerank": serving(cells),
        "cold": cold(cells),
    }
    bar = {"utility and returns": "above 0 in every world", "gap, %": BAR_GAP, "safe": "no loss, >= .9, >= 1",
           "cold": "exposure x5 at <= 2 % utility"}  # fmt: skip
    passed = all(gains[recipe].values()) and closed
    context = {
        "seeds": sorted({one["seed"] for one in cells}),
        "training_seeds": sorted({one["training_seed"] for one in cells}),
        "users": [one["users"] for one in cells],
        "protocol": "3 days after a 10-day log of 4,000 users, 95 % intervals paired by user; recall: leave-one-out"
        " test rows, seen items kept, item-level hits, beam 64, paired by row",
    }
    finish("align", value, bar, passed, context, quick, {"worlds": worlds, "cells": cells})


def serving(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Reranking before and after alignment, utility in per cent against continued SFT, and the cost of an answer."""
    found = {}
    for one in (one for one in cells if one["training_seed"] == 0):
        names = [name for name in one["against sft, %"] if "rerank" in name or name in ARMS]
        found[f"{one['world']} {one['seed']}"] = {
            "utility, %": {name: one["against sft, %"][name]["utility"] for name in names},
            "CPU ms": {name: one["ms_per_answer"][name] for name in names},
            "aligned and reranked less reranked alone, %": {
                arm: one["pairs, %"][f"{arm}+rerank less pretrained+rerank"]["utility"] for arm in ARMS
            },
        }
    return found


def cold(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """What the quota does to the exposure of items that the log never showed, and to utility."""
    found = {}
    for one in cells:
        if "safe+cold quota" in one["levels"]:
            found[f"{one['world']} {one['seed']}"] = {
                "exposure, share": [one["levels"][name]["cold_share"] for name in ("safe", "safe+cold quota")],
                "utility, %": one["pairs, %"]["safe+cold quota less safe"]["utility"],
            }
    return found


if __name__ == "__main__":
    main()
