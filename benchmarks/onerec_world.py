"""Claim `onerec_world`: every OneRec model beats SASRec and popularity on true utility, in every world.

    python benchmarks/onerec_world.py [--quick] [--seeds 0 1 2]

The simulated world in its default configuration; SASRec is set up at its best (chosen on validation rows among eight
settings, trained to the end of its schedule) and reads the long views, the OneRec models read every exposure with its
feedback; all learn to write long views from the same log with the same catalogue. item-kNN stands beside them as one
more reference; the claim is not against it. What the models' parts are worth is the subject of ``onerec_ablations``.
"""

from __future__ import annotations

import argparse

from harness import arguments, finish, single_thread
from online_arms import Arm, serve_arms

ONEREC = {
    "onerec_v2": Arm("world/onerec_v2.toml"),
    "onerec": Arm("world/onerec.toml"),
    "onerec_v1": Arm("world/onerec_v1.toml"),
}
REFERENCES = {"sasrec": Arm("world/sasrec.toml"), "item_knn": Arm("world/item_knn.toml")}
CLAIMED_AGAINST = ("sasrec", "popularity")
SHOWN_AGAINST = (*CLAIMED_AGAINST, "item_knn")
SEEDS = (0, 1, 2)


def main() -> None:
    options = arguments(__doc__, flags)
    single_thread()
    main_arms = {**REFERENCES, "onerec_v2": ONEREC["onerec_v2"]} if options.quick else {**REFERENCES, **ONEREC}
    seeds = SEEDS[:1] if options.quick else options.seeds
    worlds = {str(seed): serve_arms(seed, main_arms, SHOWN_AGAINST, options.quick, "onerec_world") for seed in seeds}
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
    finish("onerec_world", value, bar, passed, context, options.quick, {"worlds": worlds})


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="worlds")


if __name__ == "__main__":
    main()
