"""Measure how right the text rules are, on captions of many kinds that no threshold was chosen by.

    python -m bench.caption_rules             # tables
    python -m bench.caption_rules wrong=true  # and the captions that are judged wrongly

The sample: ``sample_of_kinds`` in tests/support/captions.py.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.command import option, run_command
from tests.support.captions import verdicts_on_kinds

LENGTHS = ((1, 2), (3, 4), (5, 1000))


@dataclass
class CaptionRulesBench:
    wrong: bool = option(False, "list the captions that are judged wrongly")


def share(hits: int, of: int) -> str:
    return f"{hits / of:.3f} ({hits} of {of})" if of else "-"


def rule_accuracy(verdicts: list[dict[str, Any]], rule: str) -> tuple[int, int, int]:
    """Count the captions that the rule drops rightly, that any rule drops by this name, and that it should drop."""
    right = sum(row["found"] == row["expected"] == rule for row in verdicts)
    return (right, sum(row["found"] == rule for row in verdicts), sum(row["expected"] == rule for row in verdicts))


def kept(verdicts: Iterable[dict[str, Any]]) -> str:
    rows = list(verdicts)
    return share(sum(row["found"] == "keep" for row in rows), len(rows))


def of_length(row: dict[str, Any], lengths: tuple[int, int]) -> bool:
    return lengths[0] <= len(row["caption"].split()) <= lengths[1]


def main(config: CaptionRulesBench) -> None:
    """Precision and recall of each rule, and what is kept by kind and length."""
    with tempfile.TemporaryDirectory() as folder:
        verdicts = verdicts_on_kinds(Path(folder))
    print(f"{'rule':<14} {'precision':<24} recall")
    for rule in sorted({row["expected"] for row in verdicts} | {row["found"] for row in verdicts}):
        right, dropped, labelled = rule_accuracy(verdicts, rule)
        print(f"{rule:<14} {share(right, dropped):<24} {share(right, labelled)}")
    print()
    for lengths in LENGTHS:
        chosen = [row for row in verdicts if of_length(row, lengths)]
        english = [row for row in chosen if row["expected"] == "keep"]
        foreign = [row for row in chosen if row["expected"] == "not_english"]
        name = f"{lengths[0]} to {lengths[1]} words" if lengths[1] < 1000 else f"{lengths[0]} words and more"
        print(f"{name:<18} English kept {kept(english):<24} other languages kept {kept(foreign)}")
    print()
    for kind in dict.fromkeys(row["kind"] for row in verdicts if row["expected"] == "keep"):
        print(f"{kind:<10} kept {kept(row for row in verdicts if row['kind'] == kind)}")
    if config.wrong:
        for row in verdicts:
            if row["found"] != row["expected"]:
                print(f"  {row['kind']:<12} {row['expected']:<12} judged {row['found']:<12} {row['caption']}")


if __name__ == "__main__":
    run_command(main, CaptionRulesBench)
