"""Events and users as vectors: the fast first layer against the plain one, what is unknown, what is missing."""

from __future__ import annotations

import pytest
import torch

from feedback_world import bare_catalog, feedback_catalog, requests
from hand_made import changed, table_of
from sidera.core import InputError
from sidera.nn.event_features import AGE_BUCKETS, EventFeatures, UserFeatures, half_octaves, padded

LENGTHS = [7, 0, 1, 12]


@pytest.mark.parametrize("item_input", ["id", "sid", "both"])
@pytest.mark.parametrize("make", [feedback_catalog, bare_catalog])
def test_the_first_layer_in_parts_is_the_first_layer(item_input: str, make: object) -> None:
    features = EventFeatures(make(), 16, item_input).eval()  # type: ignore[operator]
    batch = requests(LENGTHS)
    outputs, gradients = [], []
    for form in (features.forward, features.concatenated):
        features.zero_grad()
        outputs.append(form(batch))
        (outputs[-1] * torch.linspace(-1, 1, 16)).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in features.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_only_the_chosen_tables_exist() -> None:
    catalog = feedback_catalog()
    assert EventFeatures(catalog, 16, "sid").item is None
    assert EventFeatures(catalog, 16, "id").code is None
    both = EventFeatures(catalog, 16, "both")
    ids = torch.tensor([3, 3, 5])
    codes = torch.from_numpy(catalog.codes).long()[ids]
    expected = both.item(ids) + sum(table(codes[:, level]) for level, table in enumerate(both.code))  # type: ignore[misc,arg-type]
    items = table_of(catalog).items(ids.numpy())
    torch.testing.assert_close(both.item_vectors(items), expected)


def test_a_missing_feedback_column_is_named() -> None:
    features = EventFeatures(feedback_catalog(), 16)
    batch = requests([3])
    without = changed(batch, feedback={name: value for name, value in batch.events.feedback.items() if name != "like"})
    with pytest.raises(InputError, match="no feedback column 'like'"):
        features(without)


def test_zero_and_unknown_seconds_are_numbers() -> None:
    features = EventFeatures(feedback_catalog(), 16).eval()
    batch = requests([4])
    odd = {**batch.events.feedback, "duration": torch.tensor([0.0, float("nan"), 1e9, 0.0])}
    odd["watch_time"] = torch.tensor([0.0, 3.0, float("nan"), 9.0])
    assert features(changed(batch, feedback=odd)).isfinite().all()
    assert features(changed(batch, times=None)).isfinite().all()


def test_an_unknown_watch_time_is_not_a_watch_time_of_zero() -> None:
    features = EventFeatures(feedback_catalog(), 16).eval()
    batch = requests([1])
    known = changed(batch, feedback={**batch.events.feedback, "watch_time": torch.zeros(1)})
    unknown = changed(batch, feedback={**batch.events.feedback, "watch_time": torch.full((1,), float("nan"))})
    assert not torch.allclose(features(known), features(unknown))


def test_times_are_hidden_from_some_histories_in_training_and_never_later() -> None:
    features = EventFeatures(feedback_catalog(), 8)
    batch = requests([2] * 400)
    torch.manual_seed(0)
    hidden = (features.train()._ages(batch) == 0).view(400, 2)
    assert (hidden[:, 0] == hidden[:, 1]).all()  # a history's times are hidden together
    assert 0.05 < hidden[:, 0].float().mean() < 0.16
    assert (features.eval()._ages(batch) > 0).all()


def test_buckets_arehalf_octaves_and_have_an_end() -> None:
    values = torch.tensor([0, 1, 2, 3, 7, 2**62])
    assert half_octaves(values, AGE_BUCKETS).tolist() == [0, 2, 3, 4, 6, AGE_BUCKETS - 1]


def test_users_with_and_without_a_profile() -> None:
    users = UserFeatures(feedback_catalog(), 8)
    known = changed(requests([1, 1, 1]), profiles={"region": torch.tensor([0, 1, 2])})
    nothing = changed(known, profiles={})
    vectors = users(known)
    assert vectors.shape == (3, 8)
    assert not torch.allclose(vectors[1], vectors[2])
    torch.testing.assert_close(users(nothing), vectors[:1].expand(3, -1))  # no field at all: as if all were unknown
    assert UserFeatures(bare_catalog(), 8)(nothing).shape == (3, 8)


@pytest.mark.parametrize("lengths", [[3, 0, 2], [0, 0], [4]])
@pytest.mark.parametrize("with_front", [False, True])
def test_padded_puts_every_token_in_its_place(lengths: list[int], with_front: bool) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.arange(1.0, 2 * int(offsets[-1]) + 1).view(-1, 2).requires_grad_()
    front = -torch.arange(1.0, len(lengths) + 1)[:, None].expand(-1, 2) if with_front else None
    table, mask = padded(values, offsets, front)
    rows = []
    for row in range(len(lengths)):
        tokens = values[offsets[row] : offsets[row + 1]]
        rows.append(tokens if front is None else torch.cat((front[row : row + 1], tokens)))
        assert torch.equal(table[row][mask[row]], rows[-1])
        assert mask[row].tolist() == [place < len(rows[-1]) for place in range(table.shape[1])]
    assert table.shape[1] == max(map(len, rows))
    assert (table[~mask] == 0).all()
    if values.numel():
        table.square().sum().backward()
        torch.testing.assert_close(values.grad, 2 * values.detach())
