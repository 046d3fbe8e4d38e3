"""What `sidera export` makes: programs answer what the model does, and are opened only where they belong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

import sidera
from contracts.checkerboard_world import SMALL, build, world
from sidera import ServeConfig
from sidera.cli import main
from sidera.core import ArtifactError, InputError, Request
from sidera.decode.beam import beam_search
from sidera.decode.compiled import (
    ALL_ITEMS,
    Asked,
    CompiledSearch,
    ContextProgram,
    ListProgram,
    SearchProgram,
    SearchShape,
    batch_parts,
    item_tables,
    portable,
    put_together,
    taken_apart,
)
from sidera.decode.eligible import Allowed, PrefixMask
from sidera.decode.listing import list_items
from sidera.engine import compiling
from sidera.engine.compiling import export_run, open_compiled, opened
from sidera.engine.parity import Parity, batch_of, parity_of, sample_of, sampled_requests
from sidera.engine.run_folder import load_snapshot, save_model
from sidera.engine.snapshot import Snapshot
from sidera.serve.app import create_app

BEAM = 6
ASKED = Asked(BEAM, BEAM)
WITH_PROPOSALS = Asked(BEAM, 12, proposals=4)


def snapshot_of(name: str = "onerec_v2") -> Snapshot:
    return Snapshot.of(build(name), world().catalog, {"name": name} | SMALL[name], "v1")


def eager_programs(snapshot: Snapshot, shape: SearchShape) -> dict[str, Callable[..., Any]]:
    """The programs before they are compiled."""
    batch, context = sample_of(snapshot)
    frame = taken_apart(portable(context))[1]
    search: Any = SearchProgram(snapshot.generator, snapshot.catalog.trie, frame, shape)
    if shape.asked.lists:
        search = ListProgram(snapshot.generator, frame)
    encode = ContextProgram(snapshot.generator, taken_apart(batch_parts(batch))[1])
    return {"context": encode, "search": search, "searches": search}


def compiled_of(snapshot: Snapshot, asked: Asked = ASKED) -> CompiledSearch:
    shape = SearchShape.of(snapshot.catalog.trie, asked)
    return opened(snapshot, eager_programs(snapshot, shape), shape)


@pytest.mark.parametrize("asked", [ASKED, WITH_PROPOSALS, ALL_ITEMS], ids=str)
@pytest.mark.parametrize("name", ["onerec_v2", "sidera", "tiger"])
def test_programs_answer_what_the_model_does(name: str, asked: Asked) -> None:
    snapshot = snapshot_of(name)
    compiled = compiled_of(snapshot, asked)
    parity = parity_of(snapshot, compiled, 24)
    assert parity.requests == 24
    assert parity.equal == 1.0
    assert parity.off <= 1e-6
    assert compiled.calls["context"] > 0
    assert compiled.calls["search"] > 0
    assert compiled.calls["searches"] > 0


@pytest.mark.parametrize("asked", [ASKED, ALL_ITEMS], ids=str)
def test_a_program_reads_the_item_tables_that_it_is_given(asked: Asked) -> None:
    """Not the model's own, which would be a copy of them in every program."""
    snapshot = snapshot_of("sidera")
    compiled, tables = compiled_of(snapshot, asked), item_tables(snapshot.generator)
    assert len(tables) == 3
    batch, context = sample_of(snapshot)
    trie, none = snapshot.catalog.trie, {"exclude": None, "allowed": None}

    def scores(of: CompiledSearch) -> torch.Tensor:
        if asked.lists:
            return of.listing(context, trie).scores  # type: ignore[union-attr]
        return of.beams(context, trie, asked.width, 5, **none).scores  # type: ignore[union-attr, arg-type]

    for place in range(3):
        ramps = [torch.linspace(0, 1, table.numel()).view_as(table) for table in tables]
        others = [table + ramps[place] if place == number else table for number, table in enumerate(tables)]
        other = CompiledSearch(compiled.programs, compiled.shape, (batch, context), others)
        with snapshot.answering(), torch.inference_mode():
            moved = not torch.allclose(other.context(batch).states, compiled.context(batch).states)
            assert moved == (place == 0)  # vectors of items; those of leaves and their biases are the search's
            assert torch.allclose(scores(other), scores(compiled)) == (place == 0)


def test_a_program_answers_proposals_too() -> None:
    snapshot = snapshot_of()
    compiled, trie = compiled_of(snapshot, WITH_PROPOSALS), snapshot.catalog.trie
    batch, proposals = batch_of(snapshot, sampled_requests(snapshot, 3)), torch.tensor([[1, -1], [0, 7], [-1, -1]])
    with snapshot.answering(), torch.inference_mode():
        context = snapshot.generator.context(batch)
        search: dict[str, Any] = {"width": BEAM, "num_results": 12, "exclude": None, "allowed": None}
        found = compiled.beams(context, trie, proposals=proposals, **search)
        expected = beam_search(snapshot.generator, context, trie, proposals=proposals, **search)
        assert compiled.beams(context, trie, proposals=proposals.repeat(1, 3), **search) is None
    assert found is not None
    size = expected.item_ids.shape[1]
    assert torch.equal(found.item_ids[:, :size], expected.item_ids)
    assert (found.item_ids[:, size:] == -1).all()
    assert {1} <= set(found.item_ids[0].tolist())
    assert {0, 7} <= set(found.item_ids[1].tolist())
    assert compiled.reasons["more proposals than exported"] == 1


def test_a_program_of_contexts_alone_is_compared_too() -> None:
    snapshot = snapshot_of()
    compiled = compiled_of(snapshot)
    del compiled.programs["search"], compiled.programs["searches"]
    assert replace(parity_of(snapshot, compiled, 6), times={}) == Parity(6, 1.0, 0.0)
    right = compiled.programs["context"]

    def doubled(*inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [part * 2 if part.is_floating_point() else part for part in right(*inputs)]

    compiled.programs["context"] = doubled
    assert not parity_of(snapshot, compiled, 6).holds


def test_a_context_that_is_more_than_tensors_is_no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    from sidera.engine import compiling_worker
    from sidera.engine.compiling_worker import search_example

    program, example, _ = search_example(snapshot_of("tiger"), ASKED, several=True)
    assert all(part.shape[0] == 3 for part in program(*example))
    monkeypatch.setattr(compiling_worker, "portable", lambda context: context)
    with pytest.raises(ValueError, match="a context holds numbers that differ between histories"):
        search_example(snapshot_of("tiger"), ASKED, several=False)
    program, example, dynamic = search_example(snapshot_of(), ASKED, several=True)
    assert [sorted(places) for places in dynamic[0]] == [[0, 2], [0, 1]]  # histories and their lengths
    assert all(part.shape[0] == 3 for part in program(*example))


def test_tensors_that_are_shared_stay_shared() -> None:
    context = sample_of(snapshot_of())[1]
    tensors, frame = taken_apart(context)
    again = put_together(frame, tensors)
    assert len(tensors) == len({id(part) for pair in context.pairs for part in pair}) + 1
    assert again.pairs[0][0] is again.pairs[0][1]
    assert again.mask is context.mask


def test_a_listing_serves_a_catalogue_whose_items_go_while_prefixes_stay() -> None:
    snapshot = snapshot_of("sidera")
    compiled, catalog = compiled_of(snapshot, ALL_ITEMS), snapshot.catalog
    below = np.flatnonzero(np.asarray(catalog.codes)[:, 0] == np.asarray(catalog.codes)[0, 0])
    for gone, why in ((below[:1], ""), (below, "the prefixes are not those of the export")):
        removed = np.zeros(catalog.num_items, dtype=bool)
        removed[gone] = True
        fewer = replace(snapshot, compiled=compiled).with_catalog(replace(catalog, removed=removed))
        batch, trie = batch_of(fewer, sampled_requests(fewer, 3)), fewer.catalog.trie
        with fewer.answering(), torch.inference_mode():
            context = fewer.context(batch)
            found, expected = fewer.listing(context), list_items(fewer.generator, context, trie)
        torch.testing.assert_close(found.scores, expected.scores)
        assert found.scores.shape[1] == catalog.num_items - len(gone)
        assert compiled.shape.why_not(trie) == why
    assert compiled.calls["searches"] == 1
    assert set(compiled.reasons) == {"the prefixes are not those of the export"}


def test_a_program_serves_a_catalogue_whose_items_go() -> None:
    snapshot = snapshot_of()
    compiled, catalog = compiled_of(snapshot), snapshot.catalog
    removed = np.zeros(catalog.num_items, dtype=bool)
    removed[:5] = True
    fewer = replace(snapshot, compiled=compiled).with_catalog(replace(catalog, removed=removed))
    batch = batch_of(fewer, sampled_requests(fewer, 3))
    with fewer.answering(), torch.inference_mode():
        context = fewer.context(batch)
        found = fewer.beams(context, width=BEAM, num_results=5)
        expected = beam_search(fewer.generator, context, fewer.catalog.trie, width=BEAM, num_results=5)
    assert torch.equal(found.item_ids, expected.item_ids)
    assert not (found.item_ids[found.valid_mask] < 5).any()
    assert compiled.calls["searches"] == 1


def test_what_has_no_program_is_computed_and_the_reason_said() -> None:
    snapshot = snapshot_of()
    compiled, trie = compiled_of(snapshot), snapshot.catalog.trie
    (_, context), mask = sample_of(snapshot), np.ones(trie.num_items, dtype=bool)
    none: dict[str, Any] = {"exclude": None, "allowed": None}
    assert compiled.beams(context, trie, BEAM + 1, 5, **none) is None
    assert (
        compiled.beams(context, trie, BEAM, 5, exclude=None, allowed=Allowed([PrefixMask.of_items(trie, mask)])) is None
    )
    assert compiled.context(batch_of(snapshot, [Request((str(world().catalog.item_keys[0]),))])) is None
    small = replace(compiled.shape, sizes=(1,) * len(compiled.shape.sizes))
    other = opened(snapshot, compiled.programs, small)
    assert other.beams(context, trie, BEAM, 5, **none) is None
    assert set(compiled.reasons) == {"another beam than the exported one", "a filter", "a history of one item"}
    assert set(other.reasons) == {"the catalogue outgrew the exported search"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose programs are "compiled" at once: a file holds a name, and opening gives that program."""
    folder = tmp_path / "run"
    world().catalog.save(folder / "catalog")
    save_model(snapshot_of(), folder / "model", "digest", {}, {})
    snapshot = load_snapshot(folder)
    programs = eager_programs(snapshot, SearchShape.of(snapshot.catalog.trie, ASKED))

    def compile_now(run: Path, out: Path, asked: Asked, minutes: float) -> dict[str, str]:
        for name in ("context", "search"):
            (out / f"{name}.pt2").write_text(name)
        return {"searches": "no time"}

    monkeypatch.setattr(compiling, "_compiled_aside", compile_now)
    monkeypatch.setattr(compiling, "check_exportable", lambda snapshot: None)
    monkeypatch.setattr(compiling, "WORTH", math.inf)  # these programs are the steps themselves
    monkeypatch.setattr(compiling, "_loaded", lambda content: programs[content.decode()])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return folder


def test_an_export_is_signed_and_opened_where_it_was_made(run: Path, tmp_path: Path) -> None:
    snapshot = load_snapshot(run)
    assert open_compiled(run, snapshot, ASKED) == ""
    done = export_run(run, snapshot, ASKED, requests=8)
    assert done.programs == ("context", "search")
    assert done.refused == {"searches": "no time"}
    assert compiling.own_key().stat().st_mode & 0o077 == 0
    with sidera.load(str(run), serve=ServeConfig(beam=BEAM)) as recommender:
        assert recommender.compiled_note == "compiled: context, search"
        keys = [str(key) for key in recommender.catalog.item_keys[:4]]
        (ours,) = recommender.recommend([keys], k=5)
        assert recommender.snapshot.compiled.calls["search"] == 1
        figures = TestClient(create_app(recommender)).get("/metrics").text
        assert 'sidera_program_calls_total{program="search"} 1\n' in figures
    with sidera.load(str(run), serve=ServeConfig(beam=BEAM, compiled=False)) as plain:
        assert plain.snapshot.compiled is None
        assert plain.recommend([keys], k=5)[0].item_keys == ours.item_keys


def test_programs_that_are_no_faster_are_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = load_snapshot(run)
    monkeypatch.setattr(compiling, "parity_of", lambda *_: Parity(8, 1.0, 0.0, {"context": 0.5, "search": 1.25}))
    monkeypatch.setattr(compiling, "_tried", lambda *asked: compiling.parity_of(*asked))
    monkeypatch.setattr(compiling, "WORTH", 0.95)
    done = export_run(run, snapshot, ASKED, requests=8)
    assert done.programs == ("context",)
    assert done.refused["search"] == "slower here: 1.25 times the time of the steps"
    opened = open_compiled(run, snapshot, ASKED)
    assert isinstance(opened, CompiledSearch)
    assert set(opened.programs) == {"context"}
    monkeypatch.setattr(compiling, "parity_of", lambda *_: Parity(8, 1.0, 0.0, {"context": 1.0, "search": 1.25}))
    with pytest.raises(InputError, match=r"no program of .* pays"):
        export_run(run, snapshot, ASKED, requests=8)


def test_what_is_not_of_here_is_left_aside_with_the_reason(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = load_snapshot(run)
    export_run(run, snapshot, ASKED, requests=4)
    folder = run / "compiled"

    def why(*, asked: Asked = ASKED, of: Snapshot = snapshot, key: Path | None = None) -> str:
        said = open_compiled(run, of, asked, key)
        assert isinstance(said, str)
        return said

    assert "exported for a search of 6 beams, 6 items and 0 proposals, this is 6 beams, 12" in why(asked=WITH_PROPOSALS)
    assert "exported for weights digest, this is v9" in why(of=replace(snapshot, version="v9"))
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "hardware_tag", lambda: {"flags": "another processor"})
        assert "for flags" in why()
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "FORMAT", "later")
        assert "for programs 2, this is later: run `sidera export` again" in why()
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
        assert "not signed by a key that this machine has" in why()
    other = tmp_path / "key"
    other.write_text("k" * 64)
    assert "not signed" in why(key=other)
    export_run(run, snapshot, ASKED, requests=4, key=other)
    assert isinstance(open_compiled(run, snapshot, ASKED, other), CompiledSearch)
    assert "not signed" in why()
    (folder / "search.pt2").write_text("context")
    assert "search.pt2 was changed" in why(key=other)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["info"]["programs"]["search"] = compiling._digest(b"context")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "cannot be opened" in why(key=other)
    with sidera.load(str(run), serve=ServeConfig(beam=BEAM, export_key=other)) as recommender:
        assert recommender.compiled_note.startswith("answers are computed step by step: ")
        assert recommender.snapshot.compiled is None


def test_programs_that_answer_otherwise_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = load_snapshot(run)
    programs = eager_programs(snapshot, SearchShape.of(snapshot.catalog.trie, ASKED))
    wrong = {
        "context": programs["context"],
        "search": lambda *inputs: [part.roll(1, 1) for part in programs["search"](*inputs)],
    }
    monkeypatch.setattr(compiling, "_loaded", lambda content: wrong[content.decode()])
    with pytest.raises(ArtifactError, match=r"0\.0% of 8 requests as the model does"):
        export_run(run, snapshot, ASKED, requests=8)
    assert not (run / "compiled").exists()


def test_programs_that_refuse_a_request_or_were_never_asked_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = load_snapshot(run)
    programs = eager_programs(snapshot, SearchShape.of(snapshot.catalog.trie, ASKED))

    def refuses(*inputs: Any) -> Any:
        raise RuntimeError("a tensor of 5 rows, 3 were expected\nframe #0")

    monkeypatch.setattr(compiling, "_loaded", lambda content: (programs | {"search": refuses})[content.decode()])
    with pytest.raises(ArtifactError, match=r"do not run: a tensor of 5 rows, 3 were expected; nothing was written"):
        export_run(run, snapshot, ASKED, requests=8)

    def compile_two(run: Path, out: Path, asked: Asked, minutes: float) -> dict[str, str]:
        for name in ("search", "searches"):
            (out / f"{name}.pt2").write_text(name)
        return {}

    monkeypatch.setattr(compiling, "_compiled_aside", compile_two)
    monkeypatch.setattr(compiling, "_loaded", lambda content: programs[content.decode()])
    with pytest.raises(ArtifactError, match=r"do not run: searches answered none of 2 requests"):
        export_run(run, snapshot, ASKED, requests=2)
    assert not (run / "compiled").exists()


class ByItsLength(torch.nn.Module):
    def forward(self, table: torch.Tensor) -> torch.Tensor:
        return table * len(table)


def test_a_dimension_that_torch_fixed_is_noticed() -> None:
    from torch.export import Dim

    from sidera.engine.compiling_worker import _check_moving

    dynamic = ({0: Dim.AUTO},)
    exported = torch.export.export(ByItsLength(), (torch.ones(3, 2),), dynamic_shapes=dynamic, strict=False)
    with pytest.raises(ValueError, match=r"an input of shape \(3, 2\) is fixed in dimension 0"):
        _check_moving(exported, dynamic)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sidera", "onerec", "onerec_v2", "decoder_only", "cobra", "masked_codes", "tiger"])
def test_searches_of_several_histories_fix_no_number_of_histories(name: str) -> None:
    from sidera.engine.compiling_worker import _check_moving, search_example

    snapshot = snapshot_of(name)
    snapshot.model.eval().requires_grad_(False)
    with torch.no_grad():
        for asked in (WITH_PROPOSALS, ALL_ITEMS):
            program, example, dynamic = search_example(snapshot, asked, several=True)
            program.eval()
            program(*example)
            _check_moving(torch.export.export(program, example, dynamic_shapes=dynamic, strict=False), dynamic)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sidera", "onerec_v2", "tiger"])
def test_contexts_fix_no_number_of_events(name: str) -> None:
    from sidera.engine.compiling_worker import _check_moving, context_example

    snapshot = snapshot_of(name)
    snapshot.model.eval().requires_grad_(False)
    with torch.no_grad():
        program, example, dynamic = context_example(snapshot)
        program.eval()
        program(*example)
        _check_moving(torch.export.export(program, example, dynamic_shapes=dynamic, strict=False), dynamic)


def test_keys_and_models_that_cannot_be_exported_are_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short"
    short.write_text("abc")
    with pytest.raises(InputError, match="has 3 bytes; allowed: 32 or more"):
        export_run(run, load_snapshot(run), ASKED, key=short)
    with pytest.raises(InputError, match="no key at"):
        export_run(run, load_snapshot(run), ASKED, key=tmp_path / "none")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with pytest.raises(InputError, match="the model is a scorer"):
        export_run(run, snapshot_of("sasrec"), ASKED)
    save_model(snapshot_of("sasrec"), run / "model", "digest", {}, {})
    assert main(["export", str(run), "--beam", "6"]) == 2
    assert "the model is a scorer: its answer is two products" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"no C\+\+ compiler is here"):
        export_run(run, snapshot_of(), ASKED)


def test_weights_that_are_swapped_drop_their_programs() -> None:
    snapshot = snapshot_of()
    with_programs = replace(snapshot, compiled=compiled_of(snapshot))
    swapped = with_programs.with_weights(snapshot.trained.state_dict(), "v2")
    assert with_programs.programs is not None
    assert swapped.programs is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler is here")
def test_a_real_export_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    world().catalog.save(tmp_path / "catalog")
    save_model(snapshot_of(), tmp_path / "model", "digest", {}, {})
    snapshot = load_snapshot(tmp_path)
    done = export_run(tmp_path, snapshot, ASKED, minutes=60, requests=40)
    assert done.refused == {}
    assert done.parity.holds
    assert isinstance(open_compiled(tmp_path, snapshot, ASKED), CompiledSearch)
