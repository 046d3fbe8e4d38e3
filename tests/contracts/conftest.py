"""Variants of a model are held to the contracts among the slow tests: each is trained for it, and its relative is too.

Their own mechanisms, their recipes, hardly logs and golden runs are tested by default.
"""

from __future__ import annotations

import pytest

VARIANTS = {"tiger_mlp", "tiger_mtp", "masked_codes", "decoder_only", "kuaiformer", "liger"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        asked = getattr(item, "callspec", None)
        if item.path.name == "test_flops.py":  # trains nothing
            continue
        if asked is not None and "contracts" in item.path.parts and VARIANTS & set(map(str, asked.params.values())):
            item.add_marker(pytest.mark.slow)
