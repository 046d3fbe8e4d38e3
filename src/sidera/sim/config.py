"""WorldConfig: every number that the simulated short-video app is made of, and the two named worlds.

``easy``: clicks are baited (clickbait pulls clicks and spoils satisfaction) and the logging policy is weak, so learning
from what the log does not reward pays. ``hard``: a good logger and little clickbait, so the log is already near right.

Units: scores are logits (0 = indifferent, +1 = clearly liked); durations are seconds; decays are kept shares per item
shown. Logits become probabilities through ``sigmoid``. docs/understand/world.md explains each number with what it does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidera.config import check_value, closest, parse_section
from sidera.core import InputError

SHARE, POSITIVE, NOT_NEGATIVE = "a share from 0 to 1", "a number above 0", "0 or more"
MAX_ITEMS = 2**24  # item numbers and candidate draws stay exact


@dataclass(frozen=True)
class WorldConfig:
    """The world's numbers; ``World.build(config, seed)`` draws a world from them."""

    # -- items --------------------------------------------------------------------------------------------------
    num_items: int = 3000  # all that will ever exist
    num_topics: int = 16  # an item has a main and a second one
    num_subtopics: int = 4  # of each topic
    num_creators: int = 200  # each item has one
    main_topic_low: float = 0.5  # an item's weight on its main topic is uniform from here to 1; a second has the rest
    quality_std: float = 0.8  # logits, an item's own quality
    creator_quality_std: float = 0.3  # logits, shared by a creator's items
    clickbait_std: float = 0.7  # logits, how far titles and covers promise too much
    duration_median: float = 30.0  # seconds; durations are log-normal
    duration_log_std: float = 0.7  # of log seconds
    duration_min: float = 6.0  # seconds
    duration_max: float = 240.0  # seconds
    viral_share: float = 0.02  # of the items are viral
    viral_boost: float = 1.5  # logits added to the popularity of viral items
    new_share: float = 0.2  # of the items arrive while the log runs
    arrival_days: float = 30.0  # new items arrive uniformly over so many first days
    cold_share: float = 0.1  # of the items arrive when the log ends: the logger never shows them
    old_age_days: float = 60.0  # items there from the start are up to so many days old
    fade_days: float = 30.0  # an item's popularity falls for so many days
    fade_weight: float = 0.8  # logits of popularity lost by then
    content_noise: float = 0.35  # noise of the 24 content numbers, whose signal is about 2 per topic

    # -- users --------------------------------------------------------------------------------------------------
    num_age_groups: int = 5  # a profile field that tells something of the taste
    num_regions: int = 6  # of users and creators
    favourite_topics: int = 4  # topics that a user likes
    favourite_low: float = 0.8  # logits, the least taste for a favourite topic
    favourite_high: float = 2.2  # logits, the most; uniform between
    other_taste_mean: float = -0.6  # logits, taste for the other topics
    other_taste_std: float = 0.25  # logits, spread of the taste for the other topics
    subtopic_taste_std: float = 0.3  # logits, per sub-topic, on top of the topic
    age_pull: float = 0.7  # how far the age group decides which topics are favourites (0: not at all)
    home_bonus: float = 0.15  # logits for creators of the user's own region
    patience_std: float = 0.3  # logits of leaving
    activity_std: float = 0.5  # logits of coming back
    join_days: int = 5  # users appear uniformly over the first so many days

    # -- what changes while watching ----------------------------------------------------------------------------
    drift_gain: float = 0.12  # short-term taste gained per item, per unit of satisfaction
    drift_decay: float = 0.9  # of it kept per item
    drift_overnight: float = 0.5  # of it kept per night
    satiation_weight: float = 0.5  # logits that a topic loses per unit of satiation
    satiation_decay: float = 0.85  # of satiation kept per item
    satiation_overnight: float = 0.3  # of satiation kept per night
    creator_satiation: float = 0.25  # logits lost per item of the same creator among the last ones
    creator_window: int = 12  # how many items back creators count
    repeat_penalty: float = 1.0  # logits lost when an item comes again
    repeat_window: int = 100  # how many items back that counts
    mood_decay: float = 0.75  # of mood kept per item; the rest is the latest satisfaction
    skip_satisfaction: float = -0.4  # logits, what an item that was not clicked does to mood
    exit_bias: float = -2.3  # logit of leaving after an item at neutral mood
    return_bias: float = 0.2  # logit of coming back the day after a day of satisfaction 0
    return_weight: float = 1.2  # logits per unit of the last day's mean satisfaction
    idle_penalty: float = 0.4  # logits lost per day of absence, at most five days' worth
    slate_size: int = 5  # items per request
    max_items_per_day: int = 40  # a session ends here at the latest

    # -- searches -----------------------------------------------------------------------------------------------
    search_share: float = 0.06  # of the requests follow a search of the user's
    search_whim: float = 0.4  # of the searches want any topic, whatever the user's taste
    search_pull: float = 0.8  # short-term taste gained for the topic searched

    # -- feedback -----------------------------------------------------------------------------------------------
    satisfaction_noise: float = 0.4  # logits
    satisfaction_clickbait: float = 1.1  # logits lost per unit of clickbait
    utility_slope: float = 1.5  # true utility of a clicked item = sigmoid(slope * satisfaction); not clicked: 0
    click_bias: float = -0.3  # logit of a click at affinity, quality and clickbait 0
    click_affinity: float = 0.8  # logits per unit of affinity
    click_quality: float = 0.3  # logits per unit of quality
    click_clickbait: float = 1.2  # logits per unit of clickbait
    watch_bias: float = 0.3  # logit of the watched share at satisfaction 0 and median duration
    watch_satisfaction: float = 1.5  # logits of the watched share per unit of satisfaction
    watch_duration: float = 0.7  # logits of the watched share lost per e-fold of duration over the median
    watch_noise: float = 0.5  # logits
    skip_seconds: float = 2.0  # what is not clicked is seen at most so long
    like_bias: float = -3.2  # logit at satisfaction 0; likes, follows, comments and forwards need a click
    like_satisfaction: float = 1.5  # logits per unit of satisfaction
    follow_bias: float = -4.6  # logit at satisfaction 0
    follow_satisfaction: float = 1.3  # logits per unit of satisfaction
    follow_creator: float = 1.0  # logits per unit of the creator's quality
    comment_bias: float = -4.2  # logit at satisfaction 0
    comment_satisfaction: float = 0.9  # logits per unit of satisfaction
    forward_bias: float = -4.4  # logit at satisfaction 0
    forward_satisfaction: float = 1.2  # logits per unit of satisfaction
    dislike_bias: float = -3.8  # logit at satisfaction 0, clicked or not
    dislike_satisfaction: float = -1.5  # logits per unit of satisfaction

    # -- the logging policy -------------------------------------------------------------------------------------
    num_candidates: int = 80  # drawn at random per request; the logger ranks these
    popularity_weight: float = 1.0  # of popularity in the logger's score
    popularity_quality: float = 0.8  # share of quality in popularity
    popularity_clickbait: float = 0.4  # share of clickbait in popularity
    popularity_noise: float = 0.8  # logits, luck in popularity
    taste_weight: float = 1.2  # of the estimated taste in the logger's score
    taste_noise: float = 0.7  # logits, error of the logger's idea of a taste, per user and topic
    uniform_share: float = 0.15  # of the slots hold an item drawn uniformly, marked

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            good = math.isfinite(value) and abs(value) <= 1e6
            check_value("[world]", field.name, value, good or field.name == "num_items", "a finite number, at most 1e6")
            if good and _never_negative(field.name):
                check_value("[world]", field.name, value, value >= 0, NOT_NEGATIVE)
        self._check_counts()
        for name in _SHARES:
            check_value("[world]", name, getattr(self, name), 0 <= getattr(self, name) <= 1, SHARE)
        for name in ("duration_median", "duration_min", "fade_days", "arrival_days"):
            check_value("[world]", name, getattr(self, name), getattr(self, name) > 0, POSITIVE)
        for low, high in (("duration_min", "duration_max"), ("favourite_low", "favourite_high")):
            limit = getattr(self, low)
            check_value(
                "[world]", high, getattr(self, high), getattr(self, high) >= limit, f"{low} ({limit:g}) or more"
            )
        late = self.new_share + self.cold_share
        if late >= 1:
            raise InputError(
                f"[world] new_share + cold_share = {late:g} leaves no item for the first day",
                allowed="below 1",
            )
        if self.num_first < self.num_candidates:
            raise InputError(
                f"[world] num_candidates = {self.num_candidates}, but the first day has {self.num_first} items",
                allowed=f"at most {self.num_first}",
            )

    @property
    def num_first(self) -> int:
        """Items that are there on the first day."""
        return self.num_items - round(self.num_items * self.new_share) - round(self.num_items * self.cold_share)

    def _check_counts(self) -> None:
        limits = {
            "num_items": (1, MAX_ITEMS),
            "num_topics": (2, min(self.num_items, 1000)),  # an item has a main and a second topic
            "num_subtopics": (1, 100),
            "num_creators": (1, self.num_items),
            "num_age_groups": (1, 100),
            "num_regions": (1, 1000),
            "favourite_topics": (0, self.num_topics),
            "join_days": (1, 10_000),
            "creator_window": (1, 1000),
            "repeat_window": (1, 10_000),
            "slate_size": (1, 100),
            "max_items_per_day": (1, 1000),
            "num_candidates": (1, 4096),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            good = isinstance(value, int) and low <= value <= high
            hint = {"num_topics": " (no more than num_items)", "num_creators": " (no more than num_items)"}.get(
                name, ""
            )
            hint = " (no more than num_topics)" if name == "favourite_topics" else hint
            check_value("[world]", name, value, good, f"whole numbers from {low} to {high}{hint}")
        need = 2 * self.slate_size  # uniform slots may take up to slate_size candidates away
        check_value(
            "[world]",
            "num_candidates",
            self.num_candidates,
            self.num_candidates >= need,
            f"{need} or more (twice slate_size)",
        )


_SHARES = (
    "main_topic_low", "viral_share", "new_share", "cold_share", "age_pull", "drift_decay", "drift_overnight",
    "satiation_decay", "satiation_overnight", "mood_decay", "uniform_share",
    "search_share", "search_whim",
)  # fmt: skip
_SIGNED = ("_bias", "_low", "_high", "_mean", "_affinity", "_satisfaction", "_quality", "_clickbait", "_boost")


def _never_negative(name: str) -> bool:
    """Spreads, decays, penalties, seconds and counts; weights of likes and clicks may have any sign."""
    return not name.endswith(_SIGNED) and name not in ("follow_creator", "home_bonus", "return_weight")


WORLDS: dict[str, WorldConfig] = {
    "easy": WorldConfig(),
    "hard": WorldConfig(
        click_clickbait=0.4,
        satisfaction_clickbait=0.4,
        taste_weight=2.5,
        popularity_weight=0.6,
        uniform_share=0.1,
        num_candidates=200,
    ),
}


def world_config(name: str = "easy", changes: Mapping[str, Any] | None = None) -> WorldConfig:
    """A named world with some numbers changed; InputError names an unknown world, key or impossible value."""
    if name not in WORLDS:
        raise InputError(f"no world {name!r}{closest(name, WORLDS)}", allowed=", ".join(WORLDS))
    return parse_section(WorldConfig, {**dataclasses.asdict(WORLDS[name]), **(changes or {})}, "[world]")
