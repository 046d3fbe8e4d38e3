"""The process of `sidera export` that compiles: ``python -m sidera.engine.compiling_worker RUN OUT BEAM``.

OUT receives a file a program, and ``refused.json``: what could not be made, and why.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from sidera.decode.compiled import (
    Asked,
    ContextProgram,
    ListProgram,
    SearchProgram,
    SearchShape,
    batch_parts,
    constants,
    excluded_places,
    item_tables,
    portable,
    proposed_places,
    tables_of,
    taken_apart,
)
from sidera.decode.listing import links_of
from sidera.engine.parity import batch_of, requests_of_lengths
from sidera.engine.run_folder import load_snapshot
from sidera.engine.snapshot import Snapshot

CONFIG = {"cpp.threads": 1}  # the scheduler answers on one thread; a lone search has too little for two


def context_example(snapshot: Snapshot) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """Program, example and dynamic dimensions of the context of one history."""
    batch = batch_parts(batch_of(snapshot, requests_of_lengths(snapshot, (5,))))
    tensors, frame = taken_apart(batch)
    moving = {id(part) for group in (batch.events, batch.items) for part in taken_apart(group)[0]}
    moving -= {id(batch.events.offsets)}
    dynamic = [{0: Dim.AUTO} if id(part) in moving else None for part in tensors]
    tables = item_tables(snapshot.generator)
    return ContextProgram(snapshot.generator, frame), (tensors, tables), (dynamic, [None] * len(tables))


def search_example(snapshot: Snapshot, asked: Asked, several: bool) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """The same of the search, after one history or after several."""
    trie = snapshot.catalog.trie
    lengths = ((3, 4, 5), (3, 7, 6, 6)) if several else ((5,), (7,))
    parts = [requests_of_lengths(snapshot, some) for some in lengths]
    contexts = [snapshot.generator.context(batch_of(snapshot, some)) for some in parts]
    taken = [taken_apart(portable(context)) for context in contexts]
    if constants(taken[0][1]) != constants(taken[1][1]):
        raise ValueError("a context holds numbers that differ between histories")
    pairs = zip(taken[0][0], taken[1][0], strict=True)  # what differs between two contexts differs between all
    moving = [{at for at in range(one.ndim) if one.shape[at] != other.shape[at]} for one, other in pairs]
    varying = [dict.fromkeys(sorted(places), Dim.AUTO) for places in moving]
    items = item_tables(snapshot.generator)
    fixed = [None] * len(items)
    if asked.lists:
        tokens, parents = links_of(trie)
        free = [*([None] * (trie.num_levels - 1)), {0: Dim.AUTO}]  # items come and go
        rows, of_rows = torch.zeros(len(parts[0])), {0: Dim.AUTO} if several else None
        program = ListProgram(snapshot.generator, taken[0][1])
        return program, (taken[0][0], rows, tokens, parents, items), (varying, of_rows, free, free[1:], fixed)
    shape, tables = SearchShape.of(trie, asked), tables_of(trie)
    excluded = excluded_places(trie, len(parts[0]), None)
    proposals = proposed_places(trie, asked.proposals, len(parts[0]))
    dynamic = (
        varying,
        {0: Dim.AUTO, 1: Dim.AUTO} if several else {1: Dim.AUTO},
        [{0: Dim.AUTO} if several else None for _ in proposals],
        [None if table is tables[0] else {0: Dim.AUTO} for table in tables],
        fixed,
    )
    return (
        SearchProgram(snapshot.generator, trie, taken[0][1], shape),
        (taken[0][0], excluded, proposals, tables, items),
        dynamic,
    )


def compile_all(snapshot: Snapshot, out: Path, asked: Asked) -> dict[str, str]:
    refused = {}
    for parameter in snapshot.model.parameters():
        parameter.requires_grad_(False)
    for name in ("search", "context", "searches"):
        try:
            with torch.no_grad():
                if name == "context":
                    program, example, dynamic = context_example(snapshot)
                else:
                    program, example, dynamic = search_example(snapshot, asked, name == "searches")
                program.eval()
                program(*example)  # lays out what is laid out once, and a change of mode would drop
                exported = torch.export.export(program, example, dynamic_shapes=dynamic, strict=False)
                _check_moving(exported, dynamic)
                torch._inductor.aoti_compile_and_package(
                    exported, package_path=str(out / f"{name}.pt2"), inductor_configs=CONFIG
                )
        except Exception as error:  # whatever torch, a compiler or a model refuses
            refused[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200]
            (out / f"{name}.pt2").unlink(missing_ok=True)
    return refused


def _check_moving(exported: Any, dynamic: tuple[Any, ...]) -> None:
    """ValueError where torch fixed a dimension that moves.

    Trap: it does so without a word where an operation asks for its number, as ``len(tensor)`` does; the dimension may
    then still be a symbol, of which only one value is left.
    """
    from torch.fx.experimental.symbolic_shapes import is_concrete_int
    from torch.utils import _pytree

    wanted = _pytree.tree_leaves(dynamic, is_leaf=lambda part: part is None or isinstance(part, dict))
    inputs = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"][-len(wanted) :]
    for value, places in zip(inputs, wanted, strict=True):
        fixed = [place for place in places or () if is_concrete_int(value.shape[place])]
        if fixed:
            raise ValueError(f"an input of shape {tuple(value.shape)} is fixed in dimension {fixed[0]}")


def main() -> None:
    run, out, asked = Path(sys.argv[1]), Path(sys.argv[2]), Asked(*map(int, sys.argv[3:]))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    snapshot = load_snapshot(run)
    snapshot.model.eval()
    refused = compile_all(snapshot, out, asked)
    (out / "refused.json").write_text(json.dumps(refused), encoding="utf-8")


if __name__ == "__main__":
    main()
