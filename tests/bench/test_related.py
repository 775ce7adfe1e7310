"""The bibliography: every term and protocol names its paper, and the page is what they say."""

from pathlib import Path

from bench.related import BEGIN, END, lists
from filip.eval.protocols import protocols
from filip.train.config import TERMS

ROOT = Path(__file__).resolve().parents[2]


def test_every_term_and_protocol_names_its_paper() -> None:
    without = [name for name, one in [*TERMS.items(), *protocols().items()] if not one.citation]
    assert not without


def test_the_page_of_related_work_says_what_they_name() -> None:
    page = (ROOT / "docs" / "related.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == lists(), "python -m bench.related"
