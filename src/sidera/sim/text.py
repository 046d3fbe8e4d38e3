"""Titles, tags, speech and captions that speak of an item's topic, drawn from small vocabularies by the item's number.

The first 24 topics have words of ordinary life; worlds with more topics or sub-topics get made-up words for the rest.
Titles name the sub-topic, tags both topics, the transcript (``asr``) mixes topic words with talk that says nothing, the
caption read off the picture (``ocr``) is often empty. Clickbait shows in the title in half of the worst cases.
"""

from __future__ import annotations

import numpy as np

from sidera.sim.config import WorldConfig
from sidera.sim.items import Items
from sidera.sim.randomness import below, bits_table, keys

TOPICS: dict[str, tuple[str, ...]] = {
    "cooking": ("noodles", "bread", "curry", "dessert", "grill", "salad"),
    "football": ("goals", "tactics", "training", "derby", "keepers", "transfers"),
    "cats": ("kittens", "naps", "tricks", "rescue", "mischief", "grooming"),
    "travel": ("trains", "islands", "cities", "mountains", "hostels", "markets"),
    "fitness": ("running", "yoga", "lifting", "stretching", "swimming", "cycling"),
    "gaming": ("speedruns", "puzzles", "strategy", "racing", "builds", "retro"),
    "fashion": ("sneakers", "thrift", "suits", "knitwear", "jewellery", "tailoring"),
    "music": ("guitar", "piano", "drums", "choir", "mixing", "busking"),
    "science": ("planets", "chemistry", "insects", "volcanoes", "particles", "fossils"),
    "comedy": ("sketches", "pranks", "puns", "standup", "impressions", "parody"),
    "gardening": ("tomatoes", "roses", "compost", "bonsai", "herbs", "orchids"),
    "cars": ("engines", "rally", "restoration", "electric", "detailing", "drifting"),
    "painting": ("watercolour", "portraits", "murals", "ink", "landscapes", "sculpture"),
    "history": ("castles", "ships", "empires", "inventions", "maps", "coins"),
    "dance": ("ballet", "salsa", "breaking", "tango", "tap", "folk"),
    "gadgets": ("phones", "cameras", "keyboards", "drones", "headphones", "repairs"),
    "dogs": ("puppies", "agility", "walks", "herding", "tricks", "shelters"),
    "fishing": ("rivers", "lures", "carp", "ice", "boats", "flies"),
    "magic": ("cards", "coins", "escapes", "mentalism", "ropes", "illusions"),
    "chess": ("openings", "endgames", "blitz", "studies", "sacrifices", "traps"),
    "diy": ("shelves", "tiles", "lamps", "joinery", "plaster", "tools"),
    "books": ("novels", "poetry", "libraries", "fantasy", "bindings", "essays"),
    "space": ("rockets", "telescopes", "moons", "comets", "stations", "rovers"),
    "sewing": ("quilts", "zips", "patterns", "embroidery", "buttons", "linen"),
}
OPENERS = ("quick", "my", "easy", "weekend", "honest", "first", "best", "small", "daily", "live", "simple", "late")
CLOSERS = (
    "at home",
    "step by step",
    "in one minute",
    "for beginners",
    "part two",
    "explained",
    "with friends",
    "again",
)
BAIT = ("you will not believe", "wait for the end", "nobody tells you this", "shocking")
TALK = (
    "so today",
    "look at this",
    "as you can see",
    "let me show you",
    "and then",
    "thanks for watching",
    "right here",
)
SYLLABLES = ("ba", "ko", "mi", "ru", "ta", "ne", "lo", "shi", "va", "du", "pe", "ga")


def topic_names(config: WorldConfig) -> tuple[list[str], list[list[str]]]:
    """Names of the topics, and of the sub-topics of each."""
    topics = [*TOPICS][: config.num_topics]
    topics += [_made_up(number) for number in range(len(topics), config.num_topics)]
    below_each = []
    for number, topic in enumerate(topics):
        words = list(TOPICS.get(topic, ()))[: config.num_subtopics]
        words += [_made_up(10_000 + number * 101 + more) for more in range(len(words), config.num_subtopics)]
        below_each.append(words)
    return topics, below_each


def item_texts(items: Items, config: WorldConfig, seed: int) -> dict[str, list[str] | list[list[str]]]:
    """Columns title, tags, categories, asr, ocr and text (all of it in one sentence), one value per item."""
    topics, subtopics = topic_names(config)
    words = bits_table(keys(seed, "texts", np.arange(items.num_items)), 0, 8)
    draws = below(words, 1 << 30).tolist()
    columns: dict[str, list] = {name: [] for name in ("title", "tags", "categories", "asr", "ocr", "text")}
    sub_numbers = (items.subtopic - items.topic * config.num_subtopics).tolist()
    truth = zip(items.topic.tolist(), items.second_topic.tolist(), sub_numbers, items.clickbait.tolist(), strict=True)
    for (topic, second, sub, clickbait), draw in zip(truth, draws, strict=True):
        name, detail, other = topics[topic], subtopics[topic][sub], topics[second]
        title = f"{_pick(OPENERS, draw[0])} {detail} {_pick(CLOSERS, draw[1])}"
        if clickbait > 0.5 * config.clickbait_std and draw[2] % 2:
            title = f"{_pick(BAIT, draw[3])}: {title}"
        beside = subtopics[topic][(sub + 1 + draw[5] % max(1, config.num_subtopics - 1)) % config.num_subtopics]
        talk = f"{_pick(TALK, draw[4])} {detail} and {beside}, {_pick(TALK, draw[6])}"
        caption = f"{name} {detail}" if draw[7] % 3 else ""
        tags = [name, detail, other]
        values = (title, tags, [name, detail], talk, caption)
        for column, value in zip(("title", "tags", "categories", "asr", "ocr"), values, strict=True):
            columns[column].append(value)
        columns["text"].append(f"{title}. Tags: {', '.join(tags)}. {talk}. {caption}".strip())
    return columns


def _pick(options: tuple[str, ...], draw: int) -> str:
    return options[draw % len(options)]


def _made_up(number: int) -> str:
    """A word of four syllables, another one for every number below 20,736."""
    word = ""
    for _ in range(4):
        number, position = divmod(number, len(SYLLABLES))
        word += SYLLABLES[position]
    return word
