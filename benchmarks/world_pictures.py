"""The pictures of docs/understand/world.md, drawn from the `easy` world: ``python benchmarks/world_pictures.py``.

One picture for each table of parameters, one for the four biases that tests hold (popularity, duration, satiation, cold
start), and the ladder of policies out of benchmarks/results/online_test.json where that is there.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from harness import RESULTS, single_thread
from sidera.lab.trial import Audience, prepare
from sidera.sim.config import world_config
from sidera.sim.feedback import affinity, click_logit, satisfaction_mean
from sidera.sim.portable import sigmoid
from sidera.sim.searches import NUM_FORMS
from sidera.sim.world import World

COLORS = ("#2b5fc9", "#e07b24", "#2e9e6b", "#a4489c", "#7a7f87", "#c43d3d")
FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
LOG_DAYS = 30


def panels(count: int, width: float = 3.5) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * count, 2.9), layout="constrained")
    return figure, [_styled(figure.add_subplot(1, count, place + 1)) for place in range(count)]


def _styled(axes: Any) -> Any:
    axes.grid(color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return axes


def named(axes: Any, title: str, x: str, y: str, legend: bool = False) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xlabel(x, fontsize=8.5)
    axes.set_ylabel(y, fontsize=8.5)
    if legend:
        axes.legend(fontsize=7.5, frameon=False)


def save(figure: Figure, name: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"world-{name}.png", dpi=90)


def items(world: World) -> None:
    figure, (left, middle, right) = panels(3)
    own = world.items
    for name, color in zip(("quality", "clickbait", "popularity"), COLORS, strict=False):
        left.hist(getattr(own, name), bins=np.linspace(-3.5, 4.5, 50), histtype="step", label=name, color=color)
    named(left, "What an item is", "logits", "items", legend=True)
    middle.hist(own.duration, bins=np.geomspace(6, 240, 40), color=COLORS[0])
    middle.set_xscale("log")
    middle.set_xticks([6, 15, 30, 60, 120, 240], ["6", "15", "30", "60", "120", "240"])
    middle.minorticks_off()
    named(middle, "Duration", "seconds", "items")
    days = np.arange(-60, 41)
    right.plot(days, [own.num_alive(int(day)) for day in days], color=COLORS[0], label="items there")
    right.axhline(own.num_items, color=COLORS[4], linestyle=":", label="all, cold ones too")
    right.set_ylim(0)
    named(right, "Arrival", "day (the log begins on 0)", "items", legend=True)
    save(figure, "items")


def users(world: World) -> None:
    figure, (left, middle, right) = panels(3)
    people = world.users(np.arange(4000))
    order = np.argsort(people.age_group[:60], kind="stable")
    shown = left.imshow(
        people.taste[:60][order], aspect="auto", cmap="RdBu_r", vmin=-2.2, vmax=2.2, interpolation="nearest"
    )
    left.grid(visible=False)
    figure.colorbar(shown, ax=left, shrink=0.9)
    named(left, "Taste, users by age group", "topic", "user")
    for group in range(world.config.num_age_groups):
        mean = (people.taste[people.age_group == group] > 0).mean(axis=0)
        middle.plot(mean, marker="o", markersize=3, linewidth=1, label=f"age{group}")
    middle.set_ylim(top=0.95)
    middle.set_xticks(range(0, world.config.num_topics, 3))
    named(middle, "Favourite topics by age group", "topic", "share of users who like it")
    middle.legend(fontsize=7, frameon=False, ncols=3)
    audience = prepare(world, np.arange(2000), LOG_DAYS)
    active = _active_days(audience)
    right.hist(active, bins=np.arange(LOG_DAYS + 2) - 0.5, color=COLORS[0])
    named(right, f"Activity under the logger, {LOG_DAYS} days", "days on which the app was opened", "users")
    save(figure, "users")


def _active_days(audience: Audience) -> np.ndarray:
    there = np.arange(audience.events["time"].shape[1])[None] < audience.counts[:, None]
    days = np.where(there, audience.events["time"] // 86400, -1)
    return np.array([len(np.unique(row[row >= 0])) for row in days])


def watching(world: World) -> None:
    """One user is shown nothing but items of a favourite topic, then others."""
    figure, (left, middle, right) = panels(3)
    config = world.config
    people = world.users(np.arange(500))
    favourite = people.taste.argmax(axis=1)
    rows = np.arange(500)
    pure = np.flatnonzero(world.items.main_weight > 0.8)
    by_topic = [pure[world.items.topic[pure] == topic] for topic in range(config.num_topics)]
    lines: dict[str, list[float]] = {"taste + drift - satiation": [], "drift": [], "satiation (taken off)": []}
    others = config.num_topics - 1
    for step in range(40):
        topic = favourite if step < 20 else (favourite + 1 + step % others) % config.num_topics
        picks = [by_topic[t][(step + row) % len(by_topic[t])] for row, t in zip(rows, topic, strict=True)]
        drift = people.drift[rows, favourite]
        satiation = np.float32(config.satiation_weight) * people.satiation[rows, favourite]
        now = people.taste[rows, favourite] + drift - satiation
        for name, values in zip(lines, (now, drift, satiation), strict=True):
            lines[name].append(float(values.mean()))
        felt, clicked = np.full(500, 0.8, np.float32), np.ones(500, bool)
        people.watch(rows, np.array(picks, np.int32), world.items, felt, clicked, config)
    for (name, values), color in zip(lines.items(), COLORS, strict=False):
        left.plot(values, label=name, color=color)
    left.set_ylim(top=4.3)
    left.axvline(20, color=COLORS[4], linestyle=":")
    named(left, "20 items of the best topic, then others", "items shown", "logits, best topic", legend=True)
    mood = np.linspace(-2, 2, 80).astype(np.float32)
    for patience, color in ((-0.3, COLORS[1]), (0.0, COLORS[0]), (0.5, COLORS[2])):
        chance = sigmoid(np.float32(config.exit_bias) - mood - np.float32(patience))
        middle.plot(mood, chance, label=f"patience {patience:+.1f}", color=color)
    named(middle, "Leaving after an item", "mood", "chance", legend=True)
    for idle, color in ((0, COLORS[0]), (2, COLORS[1]), (5, COLORS[4])):
        score = config.return_bias + config.return_weight * mood - config.idle_penalty * idle
        right.plot(mood, sigmoid(score.astype(np.float32)), label=f"{idle} days away", color=color)
    right.set_ylim(0, 1)
    named(right, "Coming back the next day", "mean satisfaction of the last day", "chance", legend=True)
    save(figure, "watching")


def feedback(world: World) -> None:
    figure, (left, middle, right) = panels(3)
    config = world.config
    liking = np.linspace(-2.5, 2.5, 100).astype(np.float32)
    zero = np.zeros_like(liking)
    for bait, color in ((-1, COLORS[2]), (0, COLORS[0]), (1, COLORS[1])):
        chance = sigmoid(click_logit(liking, zero, zero + np.float32(bait), config))
        left.plot(liking, chance, color=color, label=f"click, clickbait {bait}")
        satisfaction = satisfaction_mean(liking, zero, zero + np.float32(bait), config)
        worth = chance * sigmoid(np.float32(config.utility_slope) * satisfaction)
        left.plot(liking, worth, color=color, linestyle="--", label="... and worth it" if bait == 0 else None)
    named(left, "Clicks and true utility", "affinity", "chance", legend=True)
    for seconds, color in ((10, COLORS[2]), (30, COLORS[0]), (120, COLORS[1])):
        logit = config.watch_bias + config.watch_satisfaction * liking - config.watch_duration * np.log(seconds / 30)
        middle.plot(liking, sigmoid(logit.astype(np.float32)), color=color, label=f"{seconds} s")
    named(middle, "Share watched, by duration", "satisfaction", "share of the duration", legend=True)
    for name, color in zip(("like", "follow", "comment", "forward", "dislike"), COLORS, strict=False):
        logit = getattr(config, f"{name}_bias") + getattr(config, f"{name}_satisfaction") * liking
        right.plot(liking, sigmoid(logit.astype(np.float32)), color=color, label=name)
    named(right, "Other signals", "satisfaction", "chance when clicked", legend=True)
    save(figure, "feedback")


def searches(world: World) -> None:
    figure, (left, right) = panels(2, 4.4)
    audience = prepare(world, np.arange(4000), 10)
    _, times, codes = audience.searches.of(np.arange(4000))
    owners = np.repeat(np.arange(4000), audience.searches.counts)
    topic = codes // NUM_FORMS // world.config.num_subtopics
    taste = audience.users.taste
    place = (taste[owners] > taste[owners, topic][:, None]).sum(axis=1)
    left.bar(np.arange(world.config.num_topics) + 1, np.bincount(place, minlength=world.config.num_topics) / len(place),
             color=COLORS[0])  # fmt: skip
    named(left, "Topic searched, by its place in the user's taste", "place (1: liked most)", "share of searches")
    log = audience.events
    there = np.arange(log["item"].shape[1])[None] < audience.counts[:, None]
    moments = [np.sort(times[owners == user]) for user in range(1500)]
    same, clicked = [], []
    for user in range(1500):
        wanted = topic[owners == user]
        for moment, about in zip(moments[user], wanted, strict=True):
            after = np.flatnonzero(there[user] & (log["time"][user] >= moment))[:20]
            hit = world.items.topic[log["item"][user, after]] == about
            same += np.flatnonzero(hit).tolist()
            clicked += log["click"][user, after[hit]].tolist()
    places, values = np.array(same), np.array(clicked, dtype=float)
    bins = [(0, 5), (5, 10), (10, 20)]
    means = [values[(places >= low) & (places < high)].mean() for low, high in bins]
    right.bar([f"{low + 1}-{high}" for low, high in bins], means, color=COLORS[1])
    named(right, "Clicks on the topic searched", "items after the search", "share clicked")
    save(figure, "searches")


def biases(world: World) -> None:
    figure, (first, second, third, fourth) = panels(4, 3.2)
    audience = prepare(world, np.arange(3000), LOG_DAYS)
    there = np.arange(audience.events["item"].shape[1])[None] < audience.counts[:, None]
    rows = np.broadcast_to(np.arange(len(audience.counts))[:, None], there.shape)[there]
    log = {name: values[there] for name, values in audience.events.items()}
    counts = np.sort(np.bincount(log["item"], minlength=world.items.num_items))[::-1]
    first.plot(np.arange(len(counts)) / len(counts), np.cumsum(counts) / counts.sum(), color=COLORS[0], label="the log")
    first.plot([0, 1], [0, 1], color=COLORS[4], linestyle=":", label="uniform exposure")
    named(first, "Popularity bias", "share of items, most shown first", "share of exposures", legend=True)
    click = log["click"].astype(bool)
    edges = np.geomspace(6, 240, 10)
    middles, seconds, shares = [], [], []
    for low, high in itertools.pairwise(edges):
        part = click & (log["duration"] >= low) & (log["duration"] <= high)
        middles.append(np.sqrt(low * high))
        seconds.append(log["watch_time"][part].mean())
        shares.append((log["watch_time"][part] / log["duration"][part]).mean() * 100)
    second.plot(middles, seconds, marker="o", markersize=3, color=COLORS[0], label="seconds watched")
    second.plot(middles, shares, marker="o", markersize=3, color=COLORS[1], label="% of the duration")
    second.set_xscale("log")
    second.set_xticks([6, 15, 30, 60, 120, 240], ["6", "15", "30", "60", "120", "240"])
    second.minorticks_off()
    named(second, "Duration bias (clicked items)", "duration, seconds", "", legend=True)
    topic = world.items.topic[log["item"]]
    same = np.zeros(len(topic), dtype=int)
    for lag in range(1, 9):
        same[lag:] += (topic[lag:] == topic[:-lag]) & (rows[lag:] == rows[:-lag])
    liked = audience.users.taste[rows, topic] > 0.8
    shown = range(6)
    third.bar(list(shown), [click[liked & (same == number)].mean() for number in shown], color=COLORS[2])
    named(third, "Satiation (favourite topics)", "items of the topic among the last 8", "share clicked")
    arrival = world.items.arrival
    shows = np.bincount(log["item"], minlength=len(arrival))
    names = ["old", "day 0-9", "10-19", "20-29", "cold"]
    groups = [arrival < 0, *(((arrival >= low) & (arrival < low + 10)) for low in (0, 10, 20)), arrival >= LOG_DAYS]
    fourth.bar(names, [shows[group].mean() for group in groups], color=COLORS[3])
    fourth.tick_params(axis="x", labelsize=7)
    named(fourth, f"Cold start ({LOG_DAYS} days of log)", "item arrives", "exposures per item")
    save(figure, "biases")


def logging(world: World) -> None:
    """What the logger knows: its idea of taste, and what its choice does to the items shown."""
    figure, (left, right) = panels(2, 4.4)
    people = world.users(np.arange(300))
    left.scatter(people.taste.ravel(), people.estimate.ravel(), s=2, alpha=0.3, color=COLORS[0])
    named(left, "The logger's idea of taste", "taste", "estimate")
    audience = prepare(world, np.arange(1500), 10)
    there = np.arange(audience.events["item"].shape[1])[None] < audience.counts[:, None]
    shown = audience.events["item"][there]
    everyone = np.arange(world.items.num_items)
    labels = ("taste for the topic", "quality", "clickbait", "popularity")
    rows = np.broadcast_to(np.arange(1500)[:, None], there.shape)[there]
    fresh = world.users(np.arange(1500))
    picked = np.random.default_rng(0).integers(0, world.items.num_items, len(shown)).astype(np.int32)
    liking = [affinity(fresh, rows, chosen, world.items, world.config).mean() for chosen in (shown, picked)]
    own = world.items
    shown_means = [liking[0], *(values[shown].mean() for values in (own.quality, own.clickbait, own.popularity))]
    all_means = [liking[1], *(values[everyone].mean() for values in (own.quality, own.clickbait, own.popularity))]
    right.bar(np.arange(4) - 0.2, shown_means, 0.4, color=COLORS[0], label="shown")
    right.bar(np.arange(4) + 0.2, all_means, 0.4, color=COLORS[4], label="all items")
    right.set_xticks(range(4), labels, fontsize=8)
    named(right, "What the log shows", "", "mean, logits", legend=True)
    save(figure, "logger")


def ladder() -> None:
    file = RESULTS / "online_test.json"
    if not file.is_file():
        return
    found = json.loads(file.read_text(encoding="utf-8"))["details"]["ladders"]
    figure, sides = panels(2, 5.2)
    for axes, world in zip(sides, ("easy", "hard"), strict=True):
        for place, one in enumerate(entry for entry in found if entry["world"] == world):
            arms = sorted(one["levels"], key=lambda arm: one["levels"][arm]["utility"][0])
            if place == 0:
                order = {arm: number for number, arm in enumerate(arms)}
            for arm in arms:
                value, width = one["levels"][arm]["utility"]
                axes.errorbar(value, order[arm] + 0.2 * (place - 1), xerr=width, fmt="o", markersize=4, capsize=2,
                              color=COLORS[place], label=f"seed {one['seed']}" if arm == arms[0] else None)  # fmt: skip
        axes.set_yticks(list(order.values()), list(order))
        axes.set_xscale("log")
        axes.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
        axes.minorticks_off()
        named(axes, f"{world}: true utility of three days", "items worth it per user, 95 % interval", "", legend=True)
    save(figure, "ladder")


def main() -> None:
    single_thread()
    world = World.build(world_config("easy"), 0)
    for draw in (items, users, watching, feedback, searches, biases, logging):
        draw(world)
    ladder()


if __name__ == "__main__":
    main()
