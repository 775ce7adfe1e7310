"""The error bounds of docs/interaction_how.md hold on this machine; Triton's are held in triton_interpreted.py."""

from pathlib import Path

import pytest

from bench.interaction_errors import BOUNDS, measure, table
from filip.interaction import native


@pytest.mark.parametrize(("backend", "dtype"), [key for key in BOUNDS if key[0] != "triton"])
def test_errors_stay_within_their_bounds(backend: str, dtype: str) -> None:
    if backend == "native" and native.unavailable_reason():
        pytest.skip(native.unavailable_reason())
    found, bound = measure(backend, dtype), BOUNDS[backend, dtype]
    assert found.similarities <= bound.similarities and found.gradients <= bound.gradients, found


def test_the_page_shows_the_same_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "interaction_how.md"
    assert table() in page.read_text(), (
        "docs/interaction_how.md shows other bounds than python -m bench.interaction_errors"
    )
