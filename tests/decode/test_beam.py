"""Beam search: what must hold for any catalogue, any scores, any width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_generator import TableGenerator, indices
from worlds import worlds

from hand_made import hand_made
from sidera.core import InputError
from sidera.decode.beam import beam_search
from sidera.decode.eligible import Allowed, PrefixMask
from sidera.decode.exact import score_all_items, score_all_leaves
from sidera.decode.sample import masked_log_probs
from sidera.ops.trie import CodeTrie
from sidera.roles import StepOutput

FIELDS = ("item_ids", "leaf_ids", "scores", "sids", "valid_mask")
widths = st.sampled_from([1, 2, 3, 5, 8, 64])
result_counts = st.sampled_from([1, 3, 10, 80])


def same(left, right):
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in FIELDS)


def slow_beam(world, history, width, num_results, allowed=None, proposed=()):
    """Lists of tuples, no cache, every prefix scored from scratch by ``log_probs``. ``proposed``: item ids."""
    generator, trie = world.generator, world.trie
    context = generator.context(world.batch)
    ids, offsets = world.exclude
    barred = set(ids[offsets[history] : offsets[history + 1]].tolist())
    barred |= set() if allowed is None else set(np.flatnonzero(~allowed[history]).tolist())
    every = trie.leaf_codes(np.arange(trie.num_leaves)).tolist()
    sids = [sid for sid in every if not barred.issuperset(trie.lookup(sid).tolist())]  # a dead prefix takes no place
    beams = [((), 0.0)]
    for level in range(trie.num_levels):
        legal = sorted({tuple(sid[: level + 1]) for sid in sids})
        grown = []
        for prefix in legal:
            before = [score for beam, score in beams if beam == prefix[:-1]]
            if before:
                filled = [*prefix, *[0] * (trie.num_levels - level - 1)]
                asked = torch.tensor(filled).expand(world.num_histories, 1, -1)
                grown.append((prefix, before[0] + generator.log_probs(context, asked)[history, 0, level].item()))
        best = sorted(grown, key=lambda beam: (-beam[1], beam[0]))
        along = {tuple(world.codes[item][: level + 1].tolist()) for item in proposed}
        also = [beam for beam in best[width:] if beam[0] in along]
        beams = [*best[:width], *also] if level < trie.num_levels - 1 else best
    answers = [(int(item), score) for sid, score in beams for item in trie.lookup(sid) if int(item) not in barred]
    return [*answers[:num_results], *(answer for answer in answers[num_results:] if answer[0] in proposed)]


@given(worlds(), widths, result_counts)
@settings(max_examples=60, deadline=None)
def test_beam_search_equals_lists_of_tuples(world, width, num_results):
    world.generator = world.twin(norm="none")  # exact sums: otherwise rounding decides between equal scores
    beams = beam_search(
        world.generator, world.batch, world.trie, width=width, num_results=num_results, exclude=world.exclude
    )
    for history in range(world.num_histories):
        answers = slow_beam(world, history, width, num_results)
        found = beams.valid_mask[history]
        assert beams.item_ids[history][found].tolist() == [item for item, _ in answers]
        assert beams.scores[history][found].tolist() == [score for _, score in answers]


def random_masks(world, seed):
    """(B, N) bool; sparse, dense and, in one history of some batches, everything."""
    rng = np.random.default_rng(seed)
    shares = rng.choice([0.0, 0.05, 0.3, 1.0], world.num_histories)
    return rng.random((world.num_histories, len(world.codes))) < shares[:, None]


@given(worlds(), widths, result_counts, st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_masks_close_prefixes_before_the_beam_is_cut(world, width, num_results, seed):
    """Equal to lists of tuples that never knew the barred items; a mask of all items is no mask."""
    world.generator, allowed = world.twin(norm="none"), random_masks(world, seed)
    masks = Allowed(
        [None if mask.all() else PrefixMask.of_items(world.trie, mask) for mask in allowed]
        if seed % 2
        else Allowed.of_items(world.trie, allowed).masks
    )
    beams = beam_search(
        world.generator, world.batch, world.trie, width=width, num_results=num_results, exclude=world.exclude,
        allowed=masks,
    )  # fmt: skip
    for history in range(world.num_histories):
        answers = slow_beam(world, history, width, num_results, allowed)
        found = beams.valid_mask[history]
        assert beams.item_ids[history][found].tolist() == [item for item, _ in answers]
        assert beams.scores[history][found].tolist() == [score for _, score in answers]
        ids, offsets = world.exclude
        left = allowed[history] & world.alive
        left[ids[offsets[history] : offsets[history + 1]]] = False
        assert found.sum() >= min(left.sum(), num_results, width)


@given(worlds(), widths, result_counts, st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_proposals_are_answered_beside_the_best_with_the_scores_of_the_search(world, width, num_results, seed):
    """Equal to lists of tuples whose prefixes go on; shapes that are fixed give the same; some places are empty."""
    rng = np.random.default_rng(seed)
    world.generator, masks = world.twin(norm="none"), random_masks(world, seed)
    ids, offsets = (column.tolist() for column in world.exclude)
    eligible = [
        mask & world.alive & ~np.isin(np.arange(len(mask)), ids[begin:end])
        for mask, begin, end in zip(masks, offsets, offsets[1:], strict=False)
    ]
    table = rng.integers(0, len(world.codes), (world.num_histories, int(rng.integers(1, 6))))
    table = np.where(np.take_along_axis(np.stack(eligible), table, axis=1), table, -1)
    for fixed in (False, True):
        beams = beam_search(
            world.generator, world.batch, world.trie, width=width, num_results=num_results, exclude=world.exclude,
            allowed=Allowed.of_items(world.trie, masks), fixed=fixed, proposals=torch.from_numpy(table),
        )  # fmt: skip
        for history in range(world.num_histories):
            proposed = set(table[history].tolist()) - {-1}
            answers = slow_beam(world, history, width, num_results, masks, proposed)
            valid_mask = beams.valid_mask[history]
            assert beams.item_ids[history][valid_mask].tolist() == [item for item, _ in answers]
            assert beams.scores[history][valid_mask].tolist() == [score for _, score in answers]
            assert proposed <= {item for item, _ in answers}


@given(worlds(), widths, result_counts, st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_fixed_shapes_answer_to_the_bit_what_ragged_ones_do(world, width, num_results, seed):
    allowed = Allowed.of_items(world.trie, random_masks(world, seed)) if seed % 2 else None
    found = [
        beam_search(
            world.generator, world.batch, world.trie, width=width, num_results=num_results, exclude=world.exclude,
            allowed=allowed, fixed=fixed,
        )
        for fixed in (False, True)
    ]  # fmt: skip
    for name in FIELDS:
        ours, theirs = getattr(found[0], name), getattr(found[1], name)
        if name == "scores" and world.generator.norm != "none":  # a softmax over padded rows may round otherwise
            assert torch.allclose(ours, theirs, atol=1e-6)
        elif world.generator.norm == "none" or not world.spec["ties"]:
            assert torch.equal(ours, theirs)


@given(worlds(), widths, result_counts, st.booleans())
@settings(max_examples=60, deadline=None)
def test_log_probs_of_the_search_are_those_of_masked_sampling(world, width, num_results, fixed):
    generator = world.generator
    beams = beam_search(
        generator, world.batch, world.trie, width=width, num_results=num_results, exclude=world.exclude, fixed=fixed,
        log_probs=True,
    )  # fmt: skip
    assert beams.log_probs is not None
    expected = masked_log_probs(generator, generator.context(world.batch), beams.sids, world.trie)
    torch.testing.assert_close(beams.log_probs[beams.valid_mask], expected[beams.valid_mask], rtol=1e-4, atol=1e-5)
    assert beams.log_probs[~beams.valid_mask].isnan().all()
    silent = beam_search(generator, world.batch, world.trie, width=width, num_results=num_results)
    assert silent.log_probs is None


def test_masks_of_another_trie_or_batch_are_refused():
    trie, other = (CodeTrie.build(np.array([[0, 0], [1, 1]]), (2, 2)) for _ in range(2))
    generator, everything = TableGenerator((2, 2), 1, seed=0), np.ones(2, dtype=bool)
    for masks, words in (
        ([PrefixMask.of_items(other, everything)], "of another trie"),
        ([PrefixMask.of_items(trie, everything)] * 2, "allowed has 2 masks; allowed: 1"),
    ):
        with pytest.raises(InputError, match=words):
            beam_search(generator, indices(1), trie, width=2, num_results=2, allowed=Allowed(masks))
    with pytest.raises(InputError, match="bool"):
        PrefixMask.of_items(trie, np.ones(3, dtype=bool))


@given(worlds())
@settings(max_examples=60, deadline=None)
def test_full_width_equals_exact_scoring(world):
    """Ids and scores to the bit, ties by leaf then serving order, whatever the size of the exact search's runs."""
    generator, trie, num_items = world.twin(norm="none"), world.trie, len(world.codes)
    beams = beam_search(generator, world.batch, trie, width=10_000, num_results=num_items)
    leaf_scores = score_all_leaves(generator, world.batch, trie)
    assert torch.equal(leaf_scores, score_all_leaves(generator, world.batch, trie, max_logits=1))
    leaf_of_place = np.repeat(np.arange(trie.num_leaves), np.diff(trie.leaf_ptr))
    for history in range(world.num_histories):
        place_scores = leaf_scores[history][leaf_of_place]  # items in trie order
        order = place_scores.sort(descending=True, stable=True).indices
        found = beams.valid_mask[history]
        assert beams.item_ids[history][found].tolist() == trie.leaf_items[order.numpy()].tolist()
        assert torch.equal(beams.scores[history][found], place_scores[order])


@given(worlds())
@settings(max_examples=40, deadline=None)
def test_full_width_scores_are_the_exact_scores(world):
    """With a softmax: the last bits depend on the shapes that it is computed in."""
    beams = beam_search(world.generator, world.batch, world.trie, width=10_000, num_results=len(world.codes))
    exact = score_all_items(world.generator, world.batch, world.trie)
    in_runs = score_all_leaves(world.generator, world.batch, world.trie, max_logits=1)
    assert torch.allclose(beams.scores, exact.sort(dim=1, descending=True).values, atol=1e-5)
    for history in range(world.num_histories):
        valid = beams.valid_mask[history]
        assert torch.allclose(beams.scores[history][valid], exact[history][beams.item_ids[history][valid]], atol=1e-5)
        assert torch.allclose(beams.scores[history][valid], in_runs[history][beams.leaf_ids[history][valid]], atol=1e-5)


@given(worlds())
@settings(max_examples=40, deadline=None)
def test_exact_scoring_equals_log_probs(world):
    sids = torch.from_numpy(world.codes).expand(world.num_histories, -1, -1)
    expected = world.generator.log_probs(world.generator.context(world.batch), sids).sum(-1)
    scores = score_all_items(world.generator, world.batch, world.trie)
    assert torch.allclose(scores[:, world.alive], expected[:, world.alive], atol=1e-5)
    assert (scores[:, ~world.alive] == -torch.inf).all()


@given(worlds(), widths, result_counts)
@settings(max_examples=80, deadline=None)
def test_answers_exist_are_allowed_and_differ(world, width, num_results):
    beams = beam_search(
        world.generator, world.batch, world.trie, width=width, num_results=num_results, exclude=world.exclude
    )
    ids, offsets = world.exclude
    for history in range(world.num_histories):
        valid = beams.valid_mask[history]
        items = beams.item_ids[history][valid].tolist()
        barred = set(ids[offsets[history] : offsets[history + 1]].tolist())
        assert len(set(items)) == len(items)
        assert not barred & set(items)
        assert world.alive[items].all()
        assert beams.sids[history][valid].tolist() == world.codes[items].tolist()
        assert beams.leaf_ids[history][valid].tolist() == world.trie.leaf_of_item()[items].tolist()
        assert beams.scores[history].tolist() == sorted(beams.scores[history].tolist(), reverse=True)
        assert valid.tolist() == sorted(valid.tolist(), reverse=True)
        if width >= max(world.trie.num_nodes):
            assert len(items) == min(num_results, len(set(np.flatnonzero(world.alive)) - barred))
    for field, blank in (("item_ids", -1), ("leaf_ids", -1), ("sids", -1), ("scores", -torch.inf)):
        assert (getattr(beams, field)[~beams.valid_mask] == blank).all()


@given(worlds(), widths)
@settings(max_examples=60, deadline=None)
def test_again_and_uncached_are_the_same_to_the_bit(world, width):
    first, again, uncached = (
        beam_search(generator, world.batch, world.trie, width=width, num_results=12, exclude=world.exclude)
        for generator in (world.generator, world.generator, world.twin(recompute=True))
    )
    assert same(first, again)
    assert same(first, uncached)


@given(worlds(), widths)
@settings(max_examples=60, deadline=None)
def test_batch_equals_single(world, width):
    ids, offsets = world.exclude
    exact, softmax = world.twin(norm="none"), world.twin(ties=False)  # to the bit, ties included; up to rounding

    def search(generator, batch, exclude):
        return beam_search(generator, batch, world.trie, width=width, num_results=12, exclude=exclude)

    together, together_softmax = (search(generator, world.batch, world.exclude) for generator in (exact, softmax))
    for history in range(world.num_histories):
        own = ids[offsets[history] : offsets[history + 1]]
        alone = hand_made(torch.tensor([history]), torch.tensor([0, 1])), (own, torch.tensor([0, len(own)]))
        single = search(exact, *alone)
        assert all(torch.equal(getattr(single, name)[0], getattr(together, name)[history]) for name in FIELDS)
        assert torch.allclose(search(softmax, *alone).scores[0], together_softmax.scores[history], atol=1e-5)


def test_excluding_one_item_leaves_its_siblings():
    trie = CodeTrie.build(np.array([[0], [1], [1], [1]]), (2,), order=np.array([3, 1, 2, 0]))
    generator = TableGenerator((2,), 1, seed=0)
    generator.tables[0][:] = torch.tensor([0.0, 2.0])
    beams = beam_search(generator, indices(1), trie, width=1, num_results=4)
    assert beams.item_ids.tolist() == [[3, 1, 2, 0]]
    beams = beam_search(
        generator, indices(1), trie, width=1, num_results=4, exclude=(torch.tensor([1]), torch.tensor([0, 1]))
    )
    assert beams.item_ids.tolist() == [[3, 2, 0, -1]]
    assert beams.leaf_ids.tolist() == [[1, 1, 0, -1]]


def test_catalogue_of_one_item_and_k_beyond_it():
    trie = CodeTrie.build(np.array([[2, 0, 1]]), (3, 1, 2))
    beams = beam_search(TableGenerator((3, 1, 2), 2, seed=1), indices(2), trie, width=5, num_results=3)
    assert beams.item_ids.tolist() == [[0, -1, -1], [0, -1, -1]]
    assert beams.sids[:, 0].tolist() == [[2, 0, 1], [2, 0, 1]]


def test_ties_go_to_the_lower_leaf_and_the_serving_order():
    codes = np.array([[2, 1], [0, 1], [2, 1], [1, 0]])
    trie = CodeTrie.build(codes, (3, 2), order=np.array([2, 3, 1, 0]))
    generator = TableGenerator((3, 2), 1, seed=0)
    for table in generator.tables:
        table.zero_()
    assert beam_search(generator, indices(1), trie, width=9, num_results=4).item_ids.tolist() == [[1, 3, 2, 0]]
    assert beam_search(generator, indices(1), trie, width=2, num_results=4).item_ids.tolist() == [[1, 3, -1, -1]]


class Blind(TableGenerator):
    """Gives some codes, or every code, the logit -inf."""

    def __init__(self, everything: bool, own_norm: bool) -> None:
        super().__init__((2, 2), 2, seed=0, norm="vocabulary" if own_norm else "codes")
        self.tables[1][0, 1] = -torch.inf  # history 0 knows nothing below code 1
        if everything:
            self.tables[0][:] = -torch.inf

    def _norm(self, logits):
        return logits.logsumexp(-1)  # -inf where every logit is


@pytest.mark.parametrize("own_norm", [False, True])
def test_codes_of_probability_zero_are_never_answered(own_norm):
    trie = CodeTrie.build(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))
    beams = beam_search(Blind(False, own_norm), indices(2), trie, width=4, num_results=4)
    assert sorted(beams.item_ids[0].tolist()) == [-1, -1, 0, 1]
    assert sorted(beams.item_ids[1].tolist()) == [0, 1, 2, 3]
    nothing = beam_search(Blind(True, own_norm), indices(2), trie, width=4, num_results=4)
    assert not nothing.valid_mask.any()
    assert (nothing.item_ids == -1).all()


def test_dead_beams_do_not_grow():
    """They would stand on node 0, whose seven children would cost every later step seven rows for each of them."""
    widths = []

    class Recorder(TableGenerator):
        def step(self, context, cache, level, codes, parents):
            widths.append(1 if codes is None else codes.shape[1])
            return super().step(context, cache, level, codes, parents)

    trie = CodeTrie.build(np.array([[0, code, 0] for code in range(7)] + [[1, 3, 1], [2, 2, 0]]), (3, 7, 2))
    generator = Recorder((3, 7, 2), 1, seed=0)
    generator.tables[0][0, 0] = torch.tensor([-torch.inf, 0.0, -torch.inf])
    beams = beam_search(generator, indices(1), trie, width=20, num_results=3)
    assert widths == [1, 3, 1]
    assert beams.item_ids.tolist() == [[7, -1, -1]]


def test_nan_is_refused():
    trie = CodeTrie.build(np.array([[0, 0], [1, 1]]), (2, 2))
    generator = TableGenerator((2, 2), 1, seed=0)
    generator.tables[1][:] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        beam_search(generator, indices(1), trie, width=2, num_results=1)


def test_half_precision_logits_are_summed_in_float32():
    class Half(TableGenerator):
        def step(self, *arguments):
            output = super().step(*arguments)
            return StepOutput(output.logits.bfloat16(), output.log_norm)

    trie = CodeTrie.build(np.array([[0, 0], [1, 1], [1, 2]]), (2, 3))
    beams = beam_search(Half((2, 3), 1, seed=3), indices(1), trie, width=4, num_results=3)
    exact = beam_search(TableGenerator((2, 3), 1, seed=3), indices(1), trie, width=4, num_results=3)
    assert beams.scores.dtype == torch.float32
    assert torch.allclose(beams.scores, exact.scores, atol=0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0}, "width is 0; allowed: 1 or more"),
        ({"num_results": 0}, "num_results is 0"),
        ({"exclude": (torch.tensor([0]), torch.tensor([0, 1, 1]))}, "exclude names 2 histories; allowed: 1"),
        ({"exclude": (torch.tensor([7]), torch.tensor([0, 1]))}, "allowed: 0 to 1"),
    ],
)
def test_bad_input_is_named(change, words):
    trie = CodeTrie.build(np.array([[0, 0], [1, 1]]), (2, 2))
    with pytest.raises(InputError) as error:
        beam_search(TableGenerator((2, 2), 1, seed=0), indices(1), trie, **{"width": 2, "num_results": 2, **change})
    assert words in str(error.value)


def test_a_trie_of_other_codes_is_refused():
    trie = CodeTrie.build(np.array([[0, 0]]), (2, 3))
    with pytest.raises(InputError, match=r"sizes \(2, 2\), the trie holds \(2, 3\)"):
        beam_search(TableGenerator((2, 2), 1, seed=0), indices(1), trie, width=2, num_results=2)
