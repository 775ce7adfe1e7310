"""A caption with its relation reversed is a wrong caption: "a cat left of a dog" against "a cat right of a dog".

    L = (L_i2t + L_t2i) / 2 + p mean over i of log(1 + exp(t s^I(i, c_i') - log sum over j of exp(t s^I_ij)))

c_i' is the caption of image i in which the word that relates two things gives way to its opposite (see
:func:`~filip_research.swapped_words.with_relation_reversed`), p the setting ``pressure``. Images whose caption has no
such word, or several, have no such term. Hoehing et al. find that CLIP does not learn positions from pairs alone, and
that it can be taught them by pairs that differ in nothing else.

Use it on a trained model (``init_from``), with captions that mostly have a relation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from filip.cli.command import option
from filip.common import citations
from filip.train.losses.term import LossInput, TermOutput, sum_of
from filip_research.swapped_words import SWAPPED_WORDS, against_altered, with_relation_reversed


@dataclass
class Pressure:
    """Setting of this term."""

    pressure: float = option(0.25, "weight of the penalty for reversed captions, relative to FILIP's loss", at_least=0)


def compute(batch: LossInput) -> TermOutput:
    """Compute FILIP's loss and the reversed captions' part."""
    plain, added, exists = against_altered(batch, "reversed")
    return TermOutput(sum_of([plain.loss, batch.own.pressure * (added * exists).mean()]), plain.metrics)


REVERSED_RELATIONS = replace(
    SWAPPED_WORDS,
    compute=compute,
    about="token-wise similarity against own captions with their relation reversed, too",
    captions=with_relation_reversed,
    settings=Pressure,
    citation=(
        citations.BAGS_OF_WORDS,
        "Hoehing et al., What's left can't be right: The remaining positional incompetence of contrastive "
        "vision-language models, 2023 (arXiv 2311.11477)",
    ),
)
