"""Random catalogues with a table generator, for hypothesis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from table_generator import TableGenerator, indices

from sidera.batch import Batch
from sidera.ops.trie import CodeTrie


@dataclass
class World:
    trie: CodeTrie
    codes: np.ndarray  # (N, L)
    alive: np.ndarray  # (N,) bool
    generator: TableGenerator
    batch: Batch
    exclude: tuple[torch.Tensor, torch.Tensor]
    spec: dict

    @property
    def num_histories(self) -> int:
        return self.batch.num_histories

    def twin(self, **changes) -> TableGenerator:
        """The same tables behind another implementation."""
        return TableGenerator(**{**self.spec, **changes})


@st.composite
def worlds(draw) -> World:
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 4, 7]), min_size=1, max_size=4)))
    num_items, num_histories = draw(st.integers(1, 60)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = np.stack([rng.integers(0, size, num_items) for size in sizes], axis=1)
    alive = rng.random(num_items) < draw(st.sampled_from([0.5, 1.0]))
    alive[0] = True
    trie = CodeTrie.build(codes, sizes, order=rng.permutation(num_items), alive=alive)
    spec = {
        "level_sizes": sizes,
        "num_histories": num_histories,
        "seed": draw(st.integers(0, 2**31)),
        "ties": draw(st.booleans()),
        "norm": draw(st.sampled_from(["codes", "vocabulary", "none"])),
    }
    lengths = rng.integers(0, num_items + 1, num_histories) * draw(st.integers(0, 1))
    excluded = np.concatenate([rng.integers(0, num_items, length) for length in lengths])
    exclude = (torch.from_numpy(excluded).long(), torch.from_numpy(np.append(0, np.cumsum(lengths))))
    return World(trie, codes, alive, TableGenerator(**spec), indices(num_histories), exclude, spec)
