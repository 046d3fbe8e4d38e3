"""What the parts of the OneRec models are worth in the simulated world, by true utility; no bar.

    python benchmarks/onerec_ablations.py [--quick] [--seeds 0 1 2]

Each arm is a recipe of ``onerec_world`` with one pathway switched off, with eight experts in the decoder, or (v1, whose
recipe has eight) without them, trained on the same log and compared with the whole model in the online test. The mean
over worlds is of these worlds and these trainings: one training seed a world, so what differs between two trainings of
one arm is in the differences.
"""

from __future__ import annotations

import argparse

from harness import arguments, finish, single_thread
from online_arms import Arm, serve_arms

WHOLE = {label: Arm(f"world/{label}.toml") for label in ("onerec_v2", "onerec", "onerec_v1")}
EXPERTS = ("model.num_experts=8", "model.num_active=2", "model.expert_width=64")
ABLATIONS = {
    "onerec_v2: experts": Arm("world/onerec_v2.toml", EXPERTS),
    "onerec: experts": Arm("world/onerec.toml", EXPERTS),
    "onerec_v1: dense": Arm("world/onerec_v1.toml", ("model.num_experts=0",)),
    "onerec: no static": Arm("world/onerec.toml", ("model.static=false",)),
    "onerec: no short-term": Arm("world/onerec.toml", ("model.short_term=0",)),
    "onerec: no positive": Arm("world/onerec.toml", ("model.positive_length=0",)),
    "onerec: no lifelong": Arm("world/onerec.toml", ("model.num_lifelong_queries=0",)),
}
SEEDS = (0, 1, 2)


def main() -> None:
    options = arguments(__doc__, flags)
    single_thread()
    shown = ("onerec_v2: experts",) if options.quick else tuple(ABLATIONS)
    whole = {label: WHOLE[label] for label in dict.fromkeys(whole_of(label) for label in shown)}
    arms = {**whole, **{label: ABLATIONS[label] for label in shown}}
    seeds = SEEDS[:1] if options.quick else options.seeds
    worlds = {str(seed): serve_arms(seed, arms, tuple(whole), options.quick, "onerec_ablations") for seed in seeds}
    value = {}
    for label in shown:
        found = [world[f"against {whole_of(label)}, %"][label]["utility"] for world in worlds.values()]
        value[label] = {"worlds": found, "mean": mean_of(found)}
    metric = "true utility against the whole model, % +- half of the 95 % interval, paired by user"
    context = {"world": "easy", "seeds": list(worlds), "metric": metric}
    finish("onerec_ablations", value, None, None, context, options.quick, {"worlds": worlds})


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="worlds")


def whole_of(label: str) -> str:
    """The model that an ablation takes a part from."""
    return label.split(":")[0]


def mean_of(found: list[list[float]]) -> list[float]:
    """Mean over worlds of [difference, half width]; users of different worlds are different people."""
    mean = sum(difference for difference, _ in found) / len(found)
    half = sum(width**2 for _, width in found) ** 0.5 / len(found)
    return [round(mean, 2), round(half, 2)]


if __name__ == "__main__":
    main()
