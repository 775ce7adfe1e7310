"""Jobs that share the work name their part in one way: counted from 0, for downloads as for evaluations."""

import pytest

from filip.data.parts import parse_part
from filip.errors import UserError


def test_the_parts_of_an_array_of_jobs_are_counted_from_0() -> None:
    assert [parse_part(f"{number}/8") for number in range(8)] == [(number, 8) for number in range(8)]
    assert parse_part(None) is None and parse_part("") is None


@pytest.mark.parametrize("part", ["3", "8/8", "9/8", "a/b", "1/0", "-1/8", "1/8/9"])
def test_another_part_is_refused(part: str) -> None:
    with pytest.raises(UserError, match=f"^shard={part}: parts are counted from 0.*--array=0-7$"):
        parse_part(part, "shard")


def test_the_last_part_counted_from_1_is_answered_with_the_parts_that_there_are() -> None:
    with pytest.raises(UserError, match="here 0/8 to 7/8"):
        parse_part("8/8")
