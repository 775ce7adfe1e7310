"""The faults of bench/mutations.py still have a place to go, and a test beside them; running them all takes minutes."""

import pytest

from bench.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.fault)
def test_a_fault_changes_the_file_that_it_names(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    assert mutation.old in text and text.replace(mutation.old, mutation.new) != text
    assert (ROOT / mutation.tests.split("::")[0]).exists()
