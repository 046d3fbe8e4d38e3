"""The online test: recommenders serve the users of a simulated world, beside policies that bracket the scale.

    arms = {"onerec": RecommenderPolicy(recommender, world), "random": RandomPolicy(3000)}
    result = online_test(arms, world, users=1000, days=3)

Every arm meets the same users, who have lived through the same log, in the same luck (common random numbers), so
differences are paired by user and most of what makes people unlike each other drops out. All arms are compared with the
first one, the *reference*.

Trap: utility, what users truly got out of it, is known here only. An app would see the other columns, and a policy can
raise watch time while utility and returns fall.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidera.artifacts import write_text
from sidera.config import closest
from sidera.core import ArtifactError, InputError
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.lab.brackets import Insider, LoggerPolicy, OraclePolicy, PopularityPolicy, RandomPolicy
from sidera.lab.differences import WIDTH, Difference, compare
from sidera.lab.policy import Policy
from sidera.lab.recommender_policy import RecommenderPolicy
from sidera.lab.trial import METRICS, Audience, Outcomes, prepare, run_policy
from sidera.sim.world import World

BRACKETS = ("random", "popularity", "logger", "oracle")
RERANKED = "+rerank"  # ends the name of an arm whose answers its reward's network chooses
CANDIDATES = 64  # that the network chooses among
POLICIES = "random, popularity, logger, oracle[:utility|watch_time|click[:strength]]"
Arm = Policy | Insider


@dataclass(frozen=True)
class OnlineTest:
    """What came of a test: plain numbers, kept as JSON. Arms in the order given, the reference first."""

    setting: dict[str, Any]  # world, seed, users, days: what has to be equal to compare two tests
    reference: str
    levels: dict[str, dict[str, tuple[float, float]]]  # arm -> metric -> (mean, half of the 95 % interval)
    differences: dict[str, dict[str, Difference]]  # arm (not the reference) -> metric -> arm less reference, paired
    lost: dict[str, float]  # arm -> share of users left without an answer
    faults: dict[str, dict[str, int]]  # arm -> unknown, duplicate, missing slots
    problems: dict[str, list[str]]  # arm -> why users were lost
    cpu_seconds: dict[str, float]  # arm -> of the whole process
    pairs: dict[str, dict[str, Difference]] = field(default_factory=dict)  # "B less A" -> metric -> B less A, paired

    @property
    def arms(self) -> list[str]:
        return list(self.levels)

    def save(self, path: str | Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> OnlineTest:
        """Read what :meth:`save` wrote; ArtifactError when it cannot be read."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            differences, pairs = (
                {
                    name: {metric: Difference(**values) for metric, values in metrics.items()}
                    for name, metrics in record.pop(key, {}).items()
                }
                for key in ("differences", "pairs")
            )
            levels = {
                arm: {metric: (values[0], values[1]) for metric, values in metrics.items()}
                for arm, metrics in record.pop("levels").items()
            }
            return cls(levels=levels, differences=differences, pairs=pairs, **record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"online test {str(path)!r} cannot be read: {error}", fix="run it again") from None


def online_test(
    arms: Mapping[str, Arm | str],
    world: World,
    *,
    users: int = 1000,
    days: int = 3,
    log_days: int = 10,
    first_user: int = 0,
    user_ids: NDArray[np.int64] | None = None,
    brackets: bool = True,
    reference: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    timeout: float = 60.0,
    say: Callable[[str], None] = lambda text: None,
) -> OnlineTest:
    """Let every arm serve ``users`` users for ``days`` days, after they have lived through ``log_days`` of the log.

    An arm is a policy, or the text of one that :func:`bracket` knows. ``brackets`` adds those of random, popularity,
    logger and oracle that are not there. ``reference``: the arm that the others are compared with, the first by
    default. ``first_user``: number of the first of the users; ``user_ids`` names each instead. ``pairs``: arms (A, B)
    that are compared besides. ``timeout``: seconds for one answer.
    """
    numbers = np.arange(first_user, first_user + users) if user_ids is None else np.asarray(user_ids)
    users = len(numbers)
    if users < 2:
        raise InputError(f"users = {users} gives no interval", allowed="2 or more")
    if reference is not None and reference not in arms:
        raise InputError(f"reference {reference!r} is no arm of the test", allowed=", ".join(arms))
    every_arm = {**arms, **{name: name for name in BRACKETS if brackets and name not in arms}}
    if not every_arm:
        raise InputError("an online test needs an arm")
    audience = prepare(world, numbers, log_days)
    policies = {name: bracket(arm, world, audience) if isinstance(arm, str) else arm for name, arm in every_arm.items()}
    outcomes: dict[str, Outcomes] = {}
    cpu_seconds: dict[str, float] = {}
    for name, policy in policies.items():
        begun = time.process_time()
        outcomes[name] = run_policy(world, policy, audience, days, timeout=timeout)
        cpu_seconds[name] = round(time.process_time() - begun, 3)
        say(f"{name}: {_short(outcomes[name])}")
    first = reference or next(iter(policies))
    return OnlineTest(
        setting={"world": world.digest, "seed": world.seed, "num_items": world.config.num_items, "users": users,
                 "first_user": int(numbers.min()), "log_days": log_days, "days": days},
        reference=first,
        levels={name: {key: _level(outcome.metrics[key]) for key in METRICS} for name, outcome in outcomes.items()},
        differences={name: compare(outcomes[first], outcome) for name, outcome in outcomes.items() if name != first},
        lost={name: outcome.lost_share for name, outcome in outcomes.items()},
        faults={name: dict(outcome.faults) for name, outcome in outcomes.items()},
        problems={name: list(outcome.problems) for name, outcome in outcomes.items()},
        cpu_seconds=cpu_seconds,
        pairs={f"{b} less {a}": compare(outcomes[a], outcomes[b]) for a, b in pairs},
    )  # fmt: skip


def read_arms(
    specs: Sequence[str], world: World, device: str = "cpu", reranked: Sequence[str] = ()
) -> dict[str, Arm | str]:
    """name -> arm of run folders and of policies that :func:`bracket` knows.

    Each run folder of ``reranked`` is one more arm: its reward's network chooses among its candidates.
    """
    arms: dict[str, Arm | str] = {}
    for spec, candidates in [*((one, 0) for one in specs), *((one, CANDIDATES) for one in reranked)]:
        path, ending = Path(spec), RERANKED if candidates else ""
        is_policy = spec.split(":")[0] in BRACKETS and not candidates
        name = spec if is_policy else path.resolve().name + ending
        if name in arms and not is_policy:
            name = "/".join(path.resolve().parts[-2:]) + ending
        if name in arms:
            raise InputError(f"the arm {name!r} is named twice", fix="name every arm once")
        if is_policy:
            check_bracket(spec)
            arms[name] = spec
            continue
        if not path.is_dir():
            allowed = "a run folder" if candidates else f"a run folder, {POLICIES}"
            raise InputError(f"no arm {spec!r}{closest(spec, BRACKETS)}", allowed=allowed)
        found = Recommender.load(path, device=device, serve=ServeConfig(rerank=candidates))
        arms[name] = RecommenderPolicy(found, world)
    return arms


def bracket(spec: str, world: World, audience: Audience) -> Arm:
    """``random``, ``popularity`` (clicks in the audience's log), ``logger`` or ``oracle[:goal[:strength]]``."""
    name, goal, strength = check_bracket(spec)
    if name == "random":
        return RandomPolicy(world.config.num_items)
    if name == "popularity":
        return PopularityPolicy(clicks(audience, world.config.num_items))
    return OraclePolicy(goal, strength) if name == "oracle" else LoggerPolicy()


def check_bracket(spec: str) -> tuple[str, Any, float]:
    """(name, goal, strength); InputError says what is wrong with them."""
    name, *rest = spec.split(":")
    if name not in BRACKETS or (rest and name != "oracle") or len(rest) > 2:
        raise InputError(f"no policy {spec!r}", allowed=POLICIES)
    goal: Any = rest[0] if rest else "utility"
    try:
        strength = float(rest[1]) if len(rest) > 1 else 1.0
    except ValueError:
        raise InputError(f"oracle strength {rest[1]!r} is no number", allowed="a share from 0 to 1") from None
    if name == "oracle":
        OraclePolicy(goal, strength)  # says what it does not know
    return name, goal, strength


def clicks(audience: Audience, num_items: int) -> NDArray[np.int64]:
    """(N,) clicks of each item in the log that the audience lived through."""
    event_mask = np.arange(audience.events["item"].shape[1])[None] < audience.counts[:, None]
    return np.bincount(audience.events["item"][event_mask & audience.events["click"].astype(bool)], minlength=num_items)


def to_text(result: OnlineTest) -> str:
    """A table for the shell: the main metrics of every arm, with its difference from the reference."""
    shown = ("watch_time", "utility", "session_length", "returned_1", "returned_7")
    setting = result.setting
    lines = [
        f"{setting['users']} users, {setting['days']} days after {setting['log_days']} of log; "
        f"per user, and in % against {result.reference} (95 % interval, paired by user)",
        " ".join([f"{'':14s}", *(f"{metric:>26s}" for metric in shown)]),
    ]
    for arm, levels in result.levels.items():
        cells = []
        for metric in shown:
            cell = f"{levels[metric][0]:.4g}"
            if arm != result.reference:
                difference = result.differences[arm][metric]
                mark = "*" if difference.clear else " "
                cell += f" ({100 * difference.relative:+.1f} ± {100 * difference.relative_half_width:.1f}{mark})"
            cells.append(f"{cell:>26s}")
        lines.append(" ".join([f"{arm:14s}", *cells]))
        lines += [f"  {arm}: {line}" for line in troubles(result, arm)]
    return "\n".join([*lines, "* the interval leaves 0 out"])


def troubles(result: OnlineTest, arm: str) -> list[str]:
    """What went wrong with an arm, in words; empty when nothing did."""
    lines = []
    faults = {name: count for name, count in result.faults[arm].items() if count}
    if faults:
        counted = ", ".join(f"{count:,} {name}" for name, count in faults.items())
        lines.append(f"slots that stayed empty: {counted}")
    if result.lost[arm]:
        lines.append(f"{100 * result.lost[arm]:.1f} % of the users lost: {'; '.join(result.problems[arm])}")
    return lines


def _short(outcome: Outcomes) -> str:
    lost = f", {100 * outcome.lost_share:.1f} % of the users lost" if outcome.lost_share else ""
    return f"{outcome.mean('utility'):.2f} utility, {outcome.mean('watch_time'):,.0f} s watched a user{lost}"


def _level(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and half of the 95 % interval over the users for whom the metric is defined."""
    defined = values[np.isfinite(values)]
    if len(defined) < 2:
        return (float(defined.mean()) if len(defined) else float("nan")), float("nan")
    return float(defined.mean()), float(WIDTH * defined.std(ddof=1) / np.sqrt(len(defined)))
