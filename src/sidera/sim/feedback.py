"""What a user does with an item that is shown, and what it was truly worth.

Every exposure gets an answer, also those that are not clicked. Affinity (taste, drift, satiation) and clickbait decide
the click; affinity and quality *minus* clickbait decide satisfaction. Watch time follows satisfaction and the
duration: long items are watched to a smaller share, for more seconds. Likes, follows, comments and forwards need a
click, a dislike does not.

``utility`` is the truth: the chance that the user finds the item was worth it, 0 when it was not opened. It is in no
log. A policy that drives clicks or watch time up while utility falls has found a hole in the signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidera.sim.config import WorldConfig
from sidera.sim.items import Ids, Items
from sidera.sim.portable import Floats, sigmoid
from sidera.sim.randomness import Bits, Purpose, bits, normal, uniform
from sidera.sim.users import Rows, Users

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Feedback:
    """One answer per exposure; the last two are the truth and stay inside the simulation."""

    click: Flags
    watch_time: Floats  # seconds
    like: Flags
    follow: Flags
    comment: Flags
    forward: Flags
    dislike: Flags
    satisfaction: Floats
    utility: Floats


def affinity(users: Users, rows: Rows, chosen: Ids, items: Items, config: WorldConfig) -> Floats:
    """(n,) logits: how much each user (a row of ``users``) is in the mood for the topic of an item."""
    topic, second = items.topic[chosen], items.second_topic[chosen]
    main_weight, second_weight = items.main_weight[chosen], items.second_weight[chosen]
    result = users.subtopic_taste[rows, items.subtopic[chosen]] * main_weight
    for values, weight in ((users.taste, 1.0), (users.drift, 1.0), (users.satiation, -config.satiation_weight)):
        mixed = main_weight * values[rows, topic] + second_weight * values[rows, second]
        result += np.float32(weight) * mixed
    result += np.float32(config.home_bonus) * (users.region[rows] == items.region[chosen]).astype(np.float32)
    count = users.creator_count(rows, items.creator[chosen])
    return result - np.float32(config.creator_satiation) * count


def click_logit(liking: Floats, quality: Floats, clickbait: Floats, config: WorldConfig) -> Floats:
    result = np.float32(config.click_bias) + np.float32(config.click_affinity) * liking
    result += np.float32(config.click_quality) * quality
    return result + np.float32(config.click_clickbait) * clickbait


def satisfaction_mean(liking: Floats, quality: Floats, clickbait: Floats, config: WorldConfig) -> Floats:
    """Before noise and the penalty of a repeat."""
    return liking + quality - np.float32(config.satisfaction_clickbait) * clickbait


def respond(users: Users, rows: Rows, chosen: Ids, items: Items, step_keys: Bits, config: WorldConfig) -> Feedback:
    """Show item ``chosen[i]`` to user ``rows[i]``; ``step_keys`` (n,) are the random keys of this step."""
    quality, clickbait = items.quality[chosen], items.clickbait[chosen]
    liking = affinity(users, rows, chosen, items, config)
    liking -= np.float32(config.repeat_penalty) * users.is_repeat(rows, chosen).astype(np.float32)
    satisfaction = satisfaction_mean(liking, quality, clickbait, config)
    satisfaction += np.float32(config.satisfaction_noise) * normal(bits(step_keys, Purpose.SATISFACTION))
    click = uniform(bits(step_keys, Purpose.CLICK)) < sigmoid(click_logit(liking, quality, clickbait, config))

    def signal(purpose: Purpose, bias: float, slope: float, more: Floats | None = None) -> Flags:
        logit = np.float32(bias) + np.float32(slope) * satisfaction
        return uniform(bits(step_keys, purpose)) < sigmoid(logit if more is None else logit + more)

    fame = np.float32(config.follow_creator) * items.creator_quality[chosen]
    return Feedback(
        click=click,
        watch_time=_watch_time(chosen, items, satisfaction, click, step_keys, config),
        like=signal(Purpose.LIKE, config.like_bias, config.like_satisfaction) & click,
        follow=signal(Purpose.FOLLOW, config.follow_bias, config.follow_satisfaction, fame) & click,
        comment=signal(Purpose.COMMENT, config.comment_bias, config.comment_satisfaction) & click,
        forward=signal(Purpose.FORWARD, config.forward_bias, config.forward_satisfaction) & click,
        dislike=signal(Purpose.DISLIKE, config.dislike_bias, config.dislike_satisfaction),
        satisfaction=satisfaction,
        utility=sigmoid(np.float32(config.utility_slope) * satisfaction) * click.astype(np.float32),
    )


def felt(feedback: Feedback, config: WorldConfig) -> Floats:
    """(n,) what mood and return go by: satisfaction, or the small annoyance of a skip."""
    return np.where(feedback.click, feedback.satisfaction, np.float32(config.skip_satisfaction))


def _watch_time(
    chosen: Ids, items: Items, satisfaction: Floats, click: Flags, step_keys: Bits, config: WorldConfig
) -> Floats:
    """(n,) seconds; skipped items are glanced at."""
    logit = np.float32(config.watch_bias) + np.float32(config.watch_satisfaction) * satisfaction
    logit -= np.float32(config.watch_duration) * items.log_duration[chosen]
    logit += np.float32(config.watch_noise) * normal(bits(step_keys, Purpose.WATCH))
    duration = items.duration[chosen]
    glance = np.minimum(duration, np.float32(config.skip_seconds) * uniform(bits(step_keys, Purpose.SKIP)))
    return np.where(click, duration * sigmoid(logit), glance)
