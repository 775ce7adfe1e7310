"""Runs a protocol over benchmarks, for the command and for the evaluation while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from filip.common.progress import say
from filip.eval.cards import BenchmarkCard
from filip.eval.encode_set import Context
from filip.eval.encoders import Encoder
from filip.eval.families import AUTO, FAMILIES
from filip.eval.outcomes import Record
from filip.eval.protocols import Numbers, Protocol, protocol_of, shown


def evaluate(
    name: str, encoder: Encoder, cards: Sequence[BenchmarkCard], context: Context, settings: Any = None
) -> tuple[dict[str, Any], Record]:
    """Return (the entries of a result file beyond the model, the outcome of each image) of the protocol ``name`` on the
    cards.

    settings: of the protocol; None: its defaults. Raises UserError as the protocol does.
    """
    protocol = protocol_of(name)
    settings = protocol.settings() if settings is None else settings
    if protocol.settle is not None:
        settings = protocol.settle(settings, encoder)
    benchmarks: dict[str, Numbers] = {}
    record: Record = {}
    prompts = []
    for card in cards:
        of_card = context.of(encoder, card)
        benchmarks[card.name] = numbers = protocol.run(encoder, card, settings, of_card, record)
        prompts.append(of_card.prompts)
        say(f"{card.name}: {summary(protocol, numbers, not encoder.token_wise)}")
    if not prompts:  # nothing was there to evaluate
        prompts = [FAMILIES[encoder.family].prompts if context.prompts == AUTO else context.prompts]
    part = {} if context.text_tokens == "all" else {"text_tokens": context.text_tokens}
    return {
        "protocol": name,
        "settings": part | settings_of(protocol, settings, ", ".join(dict.fromkeys(prompts))),
        "benchmarks": benchmarks,
    }, record


def settings_of(protocol: Protocol, settings: Any, prompts: str) -> dict[str, Any]:
    """Return a result's dependencies beyond model and data: the protocol's settings and any prompts it reads."""
    return {**({"prompts": prompts} if protocol.reads_prompts else {}), **asdict(settings)}


def summary(protocol: Protocol, found: Numbers, pooled: bool = False) -> str:
    """Return the columns of a protocol on one benchmark in a line, and its warnings."""
    columns = []
    for one in protocol.measured(found, pooled):
        by_chance = "" if one.chance is None else f" (chance {shown(one.chance, one.unit)})"
        columns.append(f"{one.title} {shown(one.value, one.unit)} {one.unit}".rstrip() + by_chance)
    warning = [found["cut_note"]] if "cut_note" in found else []
    return "; ".join([*columns, *warning]) or "nothing to measure"
