"""Claim `onerec_world`: every OneRec model beats SASRec and popularity on true utility, in every world.

    python benchmarks/onerec_world.py [--quick] [--seeds 0 1 2] [--ablations] [--vectors]

The simulated world in its default configuration; SASRec is set up at its best (chosen on validation rows among eight
settings, trained to the end of its schedule) and reads the long views, the OneRec models read every exposure with its
feedback; all learn to write long views from the same log with the same catalogue. item-kNN stands beside them as one
more reference; the claim is not against it. Ablations (``--ablations``, world 0) switch off a pathway or add experts;
aligned item vectors have a claim of their own (``aligned_vectors``).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from harness import arguments, finish, single_thread
from online_arms import Arm, differences, levels, online, train_arm, world_log

ONEREC = {
    "onerec_v2": Arm("world/onerec_v2.toml"),
    "onerec": Arm("world/onerec.toml"),
    "onerec_v1": Arm("world/onerec_v1.toml"),
}
REFERENCES = {"sasrec": Arm("world/sasrec.toml"), "item_knn": Arm("world/item_knn.toml")}
CLAIMED_AGAINST = ("sasrec", "popularity")
SHOWN_AGAINST = (*CLAIMED_AGAINST, "item_knn")
EXPERTS = ("model.num_experts=8", "model.num_active=2", "model.expert_width=64")
ABLATIONS = {
    "onerec_v2: experts": Arm("world/onerec_v2.toml", EXPERTS),
    "onerec: experts": Arm("world/onerec.toml", EXPERTS),
    "onerec: no static": Arm("world/onerec.toml", ("model.static=false",)),
    "onerec: no short-term": Arm("world/onerec.toml", ("model.short_term=0",)),
    "onerec: no positive": Arm("world/onerec.toml", ("model.positive_length=0",)),
    "onerec: no lifelong": Arm("world/onerec.toml", ("model.num_lifelong_queries=0",)),
}
RAW, ALIGNED = "onerec_v2: raw vectors", "onerec_v2: aligned vectors"
QUICK = ("fit.epochs=3", "fit.max_steps=120", "eval.valid_rows=300")
SEEDS = (0, 1, 2)


def main() -> None:
    options = arguments(__doc__, flags)
    single_thread()
    main_arms = {**REFERENCES, "onerec_v2": ONEREC["onerec_v2"]} if options.quick else {**REFERENCES, **ONEREC}
    seeds = SEEDS[:1] if options.quick else options.seeds
    worlds = {str(seed): one_world(seed, main_arms, SHOWN_AGAINST, options.quick) for seed in seeds}
    details: dict[str, Any] = {"worlds": worlds}
    if options.ablations:
        whole = {label: ONEREC[label] for label in ("onerec_v2", "onerec")}
        details["ablations in world 0"] = one_world(0, {**whole, **ABLATIONS}, tuple(whole), options.quick, "ablations")
    if options.vectors:
        details["vectors"] = {
            str(seed): one_world(seed, vector_arms(seed), ("onerec_v2", RAW), options.quick, "vectors")
            for seed in seeds
        }
    value = {
        label: {
            against: [world[f"against {against}, %"][label]["utility"] for world in worlds.values()]
            for against in SHOWN_AGAINST
        }
        for label in ONEREC
        if label in main_arms
    }
    passed = all(gain > half for of in value.values() for against in CLAIMED_AGAINST for gain, half in of[against])
    bar = "above 0 in every world against SASRec and popularity"
    metric = "true utility, % +- half of the 95 % interval, paired by user"
    context = {"world": "easy", "seeds": list(worlds), "metric": metric}
    finish("onerec_world", value, bar, passed, context, options.quick, details)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="worlds")
    parser.add_argument("--ablations", action="store_true", help="in world 0, without pathways and with experts too")
    parser.add_argument("--vectors", action="store_true", help="in every world, codes from raw and aligned vectors too")


def vector_arms(seed: int) -> dict[str, Arm]:
    """OneRec-V2 with the codes of its recipe, of texts alone, and of aligned vectors; draws the world's pictures."""
    from sidera.sim.config import world_config
    from sidera.sim.images import write_images
    from sidera.sim.world import World

    images = world_log("easy", seed).parent / "images"
    if not images.exists():
        write_images(World.build(world_config("easy"), seed), images)
    aligned = (
        'catalog.vectors=["aligned"]',
        'catalog.align.inputs=["words", "categories", "numbers", "cover", "frames"]',
        'catalog.align.category_fields=["creator", "tags"]',
        'catalog.align.number_fields=["duration", "content"]',
        f'catalog.align.image_folder="{images}"',
    )
    return {
        "onerec_v2": ONEREC["onerec_v2"],
        RAW: Arm("world/onerec_v2.toml", ('catalog.vectors=["tfidf"]',)),
        ALIGNED: Arm("world/onerec_v2.toml", aligned),
    }


def one_world(
    seed: int, arms: dict[str, Arm], against: tuple[str, ...], quick: bool, kept_as: str = "arms"
) -> dict[str, Any]:
    """Train what is missing and let every arm serve; the outcome is kept and reused for equal models.

    Random, popular and true best items serve beside the main arms, of which SASRec is one.
    """
    from sidera import artifacts
    from sidera.artifacts import write_text
    from sidera.engine.recommender import Recommender
    from sidera.eval.online import RecommenderPolicy
    from sidera.sim.policies import OraclePolicy, PopularityPolicy, RandomPolicy

    data = world_log("easy", seed)
    runs = {label: train_arm(label, arm, data, seed, QUICK if quick else ()) for label, arm in arms.items()}
    models = {label: artifacts.read_manifest(run / "model", "model").digest for label, run in runs.items()}
    audience = 200 if quick else 1000
    kept = data.parent / f"onerec_world-{kept_as}-{audience}.json"
    if kept.is_file() and (record := json.loads(kept.read_text()))["models"] == models:
        return record["outcome"]
    opened = {label: Recommender.load(run) for label, run in runs.items()}
    policies: dict[str, Any] = {
        label: lambda world, one=model: RecommenderPolicy(one, world) for label, model in opened.items()
    }
    if "sasrec" in opened:
        policies["random"] = lambda world: RandomPolicy(world.config.num_items)
        policies["popularity"] = lambda world: PopularityPolicy(opened["sasrec"].catalog.popularity)
        policies["oracle"] = lambda world: OraclePolicy("utility")
    found = online("easy", seed, policies, audience)
    outcome: dict[str, Any] = {"means": levels(found)}
    for reference in against:
        outcome[f"against {reference}, %"] = differences(found, reference)
    write_text(kept, json.dumps({"models": models, "outcome": outcome}, indent=1))
    return outcome


if __name__ == "__main__":
    main()
