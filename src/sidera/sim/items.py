"""The items of a world: what they are in truth, and what the platform can see of them.

Truth: topics with weights, quality, clickbait, popularity. Visible (``items.parquet``): texts, creator, duration, the
viral mark, arrival, and 24 content numbers in which topic, creator and a shade of quality and clickbait show.

Arrival is a day number: below 0 for items that were there before the log, ``COLD`` for those that the logger never
shows. ``order`` lists items by arrival, so that the items alive on a day are a prefix of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidera.sim.config import WorldConfig
from sidera.sim.portable import Floats, exp, log
from sidera.sim.randomness import Bits, below, bits, bits_table, keys, normal, uniform

CONTENT_WIDTH = 24
COLD = np.int32(2**30)  # the arrival of items that only come when the log has ended
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Items:
    """One row per item; N items."""

    topic: Ids  # (N,)
    second_topic: Ids  # (N,), another one
    subtopic: Ids  # (N,), topic * num_subtopics + number inside the topic
    main_weight: Floats  # (N,)
    second_weight: Floats  # (N,), the two sum to 1
    creator: Ids  # (N,)
    region: Ids  # (N,), the creator's
    creator_quality: Floats  # (N,)
    quality: Floats  # (N,), the creator's share in it
    clickbait: Floats  # (N,)
    duration: Floats  # (N,) seconds
    log_duration: Floats  # (N,), e-folds over the median
    viral: NDArray[np.bool_]  # (N,)
    popularity: Floats  # (N,) logits, when new
    arrival: Ids  # (N,) day
    order: Ids  # (N,) item numbers by arrival
    content: Floats  # (N, 24)

    @property
    def num_items(self) -> int:
        return len(self.topic)

    def num_alive(self, day: int) -> int:
        """Items that the logger may show on a day: the first so many of ``order``."""
        return int(np.searchsorted(self.arrival[self.order], day, side="right"))

    def popularity_on(self, day: int, config: WorldConfig) -> Floats:
        """(N,) logits: what popularity is left after fading. Cold items count as new."""
        age = np.maximum(np.float32(day) - self.arrival.astype(np.float32), np.float32(0))
        faded = np.minimum(age / np.float32(config.fade_days), np.float32(1))
        return self.popularity - np.float32(config.fade_weight) * faded


def build_items(config: WorldConfig, seed: int) -> Items:
    own = keys(seed, "items", np.arange(config.num_items))
    makers = keys(seed, "creators", np.arange(config.num_creators))
    creator = below(bits(own, 0), config.num_creators)
    maker_quality = np.float32(config.creator_quality_std) * normal(bits(makers, 0))
    topic = below(bits(own, 1), config.num_topics)
    second = (topic + 1 + below(bits(own, 2), config.num_topics - 1)) % config.num_topics
    low = np.float32(config.main_topic_low)
    main_weight = low + (np.float32(1) - low) * uniform(bits(own, 4))
    quality = np.float32(config.quality_std) * normal(bits(own, 5)) + maker_quality[creator]
    clickbait = np.float32(config.clickbait_std) * normal(bits(own, 6))
    duration = np.float32(config.duration_median) * exp(np.float32(config.duration_log_std) * normal(bits(own, 7)))
    duration = np.clip(duration, np.float32(config.duration_min), np.float32(config.duration_max))
    viral = uniform(bits(own, 8)) < np.float32(config.viral_share)
    popularity = np.float32(config.popularity_quality) * quality
    popularity += np.float32(config.popularity_clickbait) * clickbait
    popularity += np.float32(config.popularity_noise) * normal(bits(own, 9))
    popularity += np.float32(config.viral_boost) * viral.astype(np.float32)
    arrival, order = _arrivals(config, own)
    items = Items(
        topic=topic.astype(np.int32),
        second_topic=second.astype(np.int32),
        subtopic=(topic * config.num_subtopics + below(bits(own, 3), config.num_subtopics)).astype(np.int32),
        main_weight=main_weight,
        second_weight=np.float32(1) - main_weight,
        creator=creator.astype(np.int32),
        region=below(bits(makers, 1), config.num_regions)[creator].astype(np.int32),
        creator_quality=maker_quality[creator],
        quality=quality,
        clickbait=clickbait,
        duration=duration,
        log_duration=log(duration / np.float32(config.duration_median)),
        viral=viral,
        popularity=popularity,
        arrival=arrival,
        order=order,
        content=_content(config, seed, own, topic, second, main_weight, creator, quality, clickbait),
    )
    return items


def _arrivals(config: WorldConfig, own: Bits) -> tuple[Ids, Ids]:
    """(N,) arrival days and the items in their order; who is old, new or cold is drawn."""
    drawn = np.argsort(bits(own, 10), kind="stable")
    num_new = round(config.num_items * config.new_share)
    arrival = -1 - below(bits(own, 11), int(config.old_age_days) + 1)
    new = drawn[config.num_first : config.num_first + num_new]
    arrival[new] = np.floor(uniform(bits(own[new], 12)) * np.float32(config.arrival_days)).astype(np.int64)
    arrival[drawn[config.num_first + num_new :]] = COLD
    order = drawn[np.argsort(arrival[drawn], kind="stable")]
    return arrival.astype(np.int32), order.astype(np.int32)


def _content(
    config: WorldConfig,
    seed: int,
    own: Bits,
    topic: NDArray[np.int64],
    second: NDArray[np.int64],
    main_weight: Floats,
    creator: NDArray[np.int64],
    quality: Floats,
    clickbait: Floats,
) -> Floats:
    """(N, 24) numbers of an item's pictures and sound, as an encoder would give them."""

    def directions(stream: str, count: int) -> Floats:
        """(count, 24) of length about 1."""
        words = bits_table(keys(seed, stream, np.arange(count)), 0, CONTENT_WIDTH)
        return normal(words.ravel()).reshape(count, CONTENT_WIDTH) / np.sqrt(np.float32(CONTENT_WIDTH))

    of_topic, of_creator = directions("topicdir", config.num_topics), directions("makerdir", config.num_creators)
    of_truth = directions("truthdir", 2)
    content = np.float32(2) * (main_weight[:, None] * of_topic[topic])
    content += np.float32(2) * ((np.float32(1) - main_weight)[:, None] * of_topic[second])
    content += np.float32(0.6) * of_creator[creator]
    content += np.float32(0.35) * (quality[:, None] * of_truth[0] + clickbait[:, None] * of_truth[1])
    noise = normal(bits_table(own, 64, CONTENT_WIDTH).ravel()).reshape(-1, CONTENT_WIDTH)
    return content + np.float32(config.content_noise) * noise
