"""A stream that is interrupted goes on with the very next pair."""

import itertools
from pathlib import Path

import pytest

from filip.errors import UserError
from tests.data.loaders import assert_same, keys, loader
from tests.data.pair_shards import Pairs, write_pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total")


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (1, 3), (2, 2)])
def test_resume_goes_on_with_the_very_next_batch(pairs: Pairs, before: int, after: int) -> None:
    everything = list(loader(pairs))
    stop = 3
    first = loader(pairs, workers=before)
    batches = list(itertools.islice(first, stop))
    state = first.state_dict()
    assert_same(batches, everything[:stop])
    second = loader(pairs, workers=after)
    second.load_state_dict(state)
    assert_same(list(second), everything[stop:])
    assert second.epoch == 1


def test_resume_at_every_batch_and_across_epochs(pairs: Pairs) -> None:
    plain = loader(pairs)
    stream = list(plain) + list(plain) + list(plain)
    assert len({tuple(keys(stream[i : i + 7])) for i in (0, 7, 14)}) == 3
    going = loader(pairs)
    states = [going.state_dict()]
    for _ in range(3):
        for _ in going:
            states.append(going.state_dict())
    for i, state in enumerate(states):
        resumed = loader(pairs)
        resumed.load_state_dict(state)
        rest = [batch for _ in range(3) for batch in resumed]
        assert_same(rest[: len(stream) - i], stream[i:])


def test_resume_under_another_world_size(pairs: Pairs) -> None:
    """Two ranks stop after a batch; one rank with the same global batch continues with the pairs that follow."""
    two = [loader(pairs, batch_size=3, rank=r, world_size=2) for r in range(2)]
    for part in two:
        next(iter(part))
    assert two[0].state_dict() == two[1].state_dict()
    one = loader(pairs, batch_size=6)
    one.load_state_dict(two[0].state_dict())
    assert_same(list(one), list(loader(pairs, batch_size=6))[1:])
    odd = loader(pairs, batch_size=4)
    with pytest.raises(UserError, match="global batch 4"):
        odd.load_state_dict(two[0].state_dict())


def test_resume_with_other_data_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    state = loader(pairs).state_dict()
    other = write_pairs(tmp_path / "other", [9, 1, 14, 0, 7])
    for stream in (loader(other), loader(pairs, seed=4), loader(pairs, shuffle_window_shards=3)):
        with pytest.raises(UserError, match="other data"):
            stream.load_state_dict(state)
