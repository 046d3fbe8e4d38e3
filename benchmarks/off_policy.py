"""Claim `off_policy`: the doubly robust 95 % interval holds the simulator's truth in 90 of 100 logs or more.

    python benchmarks/off_policy.py [--quick]

Every repetition is a log of other users under the world's logging policy, with the propensities that the log writes
(the first slot of each request, its uniform slice included). The target policy is another one: a softmax over what the
log shows of items (click rates) and users (clicks by topic). Its true value is the simulator's: chance of a click of
every item for every user at that moment, summed over the policy's choices. The model inside DR is a logistic
regression fitted on other users' uniform slice. Also shown: IPS and SNIPS, DR with capped weights, and a target that
chooses items which the log never shows, where nothing is guaranteed and only the mean weight tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness import arguments, finish, tuned_allocator
from sidera.eval.off_policy import OffPolicy, off_policy
from sidera.lab.brackets import expected
from sidera.sim.config import world_config
from sidera.sim.day import Exposures, run_day
from sidera.sim.logging_policy import Logger, Slate
from sidera.sim.portable import sigmoid
from sidera.sim.searches import SearchLog
from sidera.sim.users import Users
from sidera.sim.world import World

SEED, REPETITIONS, USERS, DAYS = 1, 100, 300, 3  # seed 0 was looked at while the model of DR was chosen
MODEL_USERS = 4000
BAR = 90  # of 100
SHARPNESS = 1.0  # of the target's softmax, in units of click rates' logits
COLD_SHARE = 0.3  # of the choices of the policy that the log cannot support
Array = np.ndarray


@dataclass
class Target:
    """A policy made from a log: item click rates and a user's clicks by topic. And the model for DR."""

    item_logit: Array  # (N,) smoothed click rate of each item: what the policy goes by
    model_logit: Array  # (N,) the same from other users: what the model goes by
    weights: Array  # (4,) of the model: 1, item, topic rate, user rate

    def features(self, seen: Seen, rows: Array, alive: Array, topic: Array) -> tuple[Array, Array]:
        """(n, A) what a user's clicks say of each item's topic, against (n, 1) what they say of the user."""
        clicks, shown = seen.clicks[rows], seen.shown[rows]
        mean = (clicks.sum(1, keepdims=True) + 1) / (shown.sum(1, keepdims=True) + 2)
        rate = (clicks + 2 * mean) / (shown + 2)
        return logit(rate)[:, topic[alive]] - logit(mean), logit(mean)

    def choices(self, seen: Seen, rows: Array, alive: Array, topic: Array) -> Array:
        """(n, A) chance of every item that is alive."""
        taste, _ = self.features(seen, rows, alive, topic)
        scores = SHARPNESS * (self.item_logit[alive] + taste)
        chance = np.exp(scores - scores.max(axis=1, keepdims=True))
        return chance / chance.sum(axis=1, keepdims=True)

    def model(self, seen: Seen, rows: Array, alive: Array, topic: Array) -> Array:
        taste, user = self.features(seen, rows, alive, topic)
        one, a, b, c = self.weights
        return sigmoid((one + a * self.model_logit[alive] + b * taste + c * user).astype(np.float32)).astype(np.float64)


@dataclass
class Seen:
    """What the log shows of U users so far, and the choices that are estimated from."""

    clicks: Array  # (U, K) by topic
    shown: Array  # (U, K)
    clicked: Array  # (N,) by item
    exposed: Array  # (N,)
    choices: list[dict[str, Array]] = field(default_factory=list)


def logit(chance: Array) -> Array:
    return np.log(chance / (1 - chance))


def play(world: World, ids: Array, target: Target | None) -> Seen:
    """The log of these users; on the last day, first slots are kept with all that is known and true of them."""
    users, topic = world.users(ids), world.items.topic
    by_topic, by_item = (len(ids), world.config.num_topics), world.items.num_items
    seen = Seen(np.zeros(by_topic), np.zeros(by_topic), np.zeros(by_item), np.zeros(by_item))
    pending: dict[str, Array] = {}
    searches = SearchLog(len(ids))
    for day in range(DAYS):
        logger, last = Logger(world, day), day == DAYS - 1

        def choose(rows: Array, keys: Array, times: Array, logger: Logger = logger, last: bool = last) -> Slate:
            slate = logger.slate(users, rows, keys)
            if last:
                pending.clear()
                pending.update(choice(world, users, seen, rows, slate, logger.alive, target))
            return slate

        def record(exposures: Exposures, last: bool = last) -> None:
            if exposures.slot == 0 and last:  # everybody who is asked sees the first slot
                seen.choices.append({**pending, "reward": exposures.feedback.click.astype(float)})
            where, click = (exposures.rows, topic[exposures.item_ids]), exposures.feedback.click.astype(float)
            np.add.at(seen.shown, where, 1.0)
            np.add.at(seen.clicks, where, click)
            np.add.at(seen.exposed, exposures.item_ids, 1.0)
            np.add.at(seen.clicked, exposures.item_ids, click)

        run_day(world, users, day, 0, choose, record, searches)
    return seen


def choice(
    world: World, users: Users, seen: Seen, rows: Array, slate: Slate, alive: Array, target: Target | None
) -> dict[str, Array]:
    """Of each row's first slot: its propensity, the target's chance, the model's and the simulator's values."""
    item = slate.item_ids[:, 0]
    found: dict[str, Array] = {"user_ids": users.ids[rows], "item": item, "propensity": slate.propensity[:, 0]}
    found["uniform"] = slate.uniform_mask[:, 0]
    topic = world.items.topic
    if target is None:  # for the model: the features of what was shown
        bare = Target(*(np.zeros(size) for size in (world.items.num_items, world.items.num_items, 4)))
        taste, user = bare.features(seen, rows, np.arange(world.items.num_items), topic)
        return found | {"taste": taste[np.arange(len(rows)), item], "user": user[:, 0]}
    place = np.empty(world.items.num_items, dtype=np.int64)
    place[alive] = np.arange(len(alive))
    here = (np.arange(len(rows)), place[item])
    chance, model = target.choices(seen, rows, alive, topic), target.model(seen, rows, alive, topic)
    truth = expected(world, users, rows, "click").astype(np.float64)
    cold = world.items.arrival >= DAYS
    return found | {
        "target": chance[here], "model_logged": model[here], "model_target": (chance * model).sum(1),
        "truth": (chance * truth[:, alive]).sum(1), "cold": truth[:, cold].mean(1),
    }  # fmt: skip


def fit_target(world: World) -> Target:
    """A policy of one log, and for DR a model of two others: the items' click rates from the first of these, the
    weights from the second's uniform slice. Rates that chose the policy's items, or that the weights are fitted on,
    flatter (winner's curse), and what the logger chose is liked for reasons that only it knows. No repetition has
    these users.
    """
    policy, rates, rest = (play(world, np.arange(MODEL_USERS) + part * 10**6, None) for part in (1, 2, 3))
    model_logit = smoothed(rates)
    rows = {name: np.concatenate([part[name] for part in rest.choices]) for name in rest.choices[0]}
    rows = {name: values[rows["uniform"]] for name, values in rows.items()}
    design = np.stack([np.ones(len(rows["item"])), model_logit[rows["item"]], rows["taste"], rows["user"]], axis=1)
    weights = np.zeros(4)
    for _ in range(20):  # Newton's steps
        chance = 1 / (1 + np.exp(-design @ weights))
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + 1e-3 * np.eye(4)
        weights += np.linalg.solve(curvature, design.T @ (rows["reward"] - chance))
    return Target(smoothed(policy), model_logit, weights)


def smoothed(seen: Seen) -> Array:
    """(N,) logits of the items' click rates, as if each had been shown eight times more with the mean rate."""
    mean = seen.clicked.sum() / seen.exposed.sum()
    return logit((seen.clicked + 8 * mean) / (seen.exposed + 8))


def estimate(log: dict[str, Array], cold_share: float = 0.0, capped: bool = False) -> OffPolicy:
    names = ("reward", "propensity", "user_ids", "model_logged", "model_target")
    cap = float(np.sqrt(len(log["reward"]))) if capped else None
    return off_policy(target=log["target"] * (1 - cold_share), cap=cap, **{name: log[name] for name in names})


def measure(name: str, repetitions: int) -> dict[str, Any]:
    """Coverage of every estimate in one world."""
    world = World.build(world_config(name), SEED)
    target = fit_target(world)
    logs = []
    for repetition in range(repetitions):
        seen = play(world, np.arange(repetition * USERS, (repetition + 1) * USERS), target)
        logs.append({key: np.concatenate([part[key] for part in seen.choices]) for key in seen.choices[0]})
    truth = float(np.concatenate([log["truth"] for log in logs]).mean())
    cold = (1 - COLD_SHARE) * truth + COLD_SHARE * float(np.concatenate([log["cold"] for log in logs]).mean())
    found = [estimate(log) for log in logs]
    unsupported = [estimate(log, COLD_SHARE) for log in logs]
    result: dict[str, Any] = {
        "truth": truth,
        "logged": float(np.mean([each.logged.value for each in found])),
        "choices": float(np.mean([each.num_choices for each in found])),
        "effective": float(np.mean([each.effective for each in found])),
    }
    capped = [estimate(log, capped=True) for log in logs]
    rows = {kind: [getattr(each, kind) for each in found] for kind in ("ips", "snips", "dr")}
    rows["dr, weights capped at sqrt(n)"] = [each.dr for each in capped]
    for kind, estimates in rows.items():
        result[kind] = {
            "covered": sum(entry.low <= truth <= entry.high for entry in estimates),
            "mean": float(np.mean([entry.value for entry in estimates])),
            "half_width": float(np.mean([entry.half_width for entry in estimates])),
        }
    estimates = [each.dr for each in unsupported]
    result["cold items chosen"] = {
        "truth": cold, "mean of dr": float(np.mean([entry.value for entry in estimates])),
        "dr covered": sum(entry.low <= cold <= entry.high for entry in estimates),
        "mean weight": float(np.mean([each.covered for each in unsupported])),
    }  # fmt: skip
    return result


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    worlds = {name: measure(name, REPETITIONS) for name in (("easy",) if options.quick else ("easy", "hard"))}
    value = {name: found["dr"]["covered"] for name, found in worlds.items()}
    passed = all(covered >= BAR for covered in value.values())
    context = {"seed": SEED, "repetitions": REPETITIONS, "users": USERS, "days": DAYS, "reward": "click"}
    finish("off_policy", value, BAR, passed, context, quick=options.quick, details=worlds)


if __name__ == "__main__":
    main()
