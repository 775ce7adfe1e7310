"""The options that a study gives to its evaluations: its own, and another project's model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from filip.common.errors import UserError
from filip.common.files import nothing_at
from filip.eval.benchmark import BenchmarkCard
from filip.eval.cards import load_card
from filip.eval.families import AUTO, PROMPTS
from filip.study.table_kinds import PROTOCOLS

SET_BY_THE_STUDY = ("model", "root", "data", "protocols", "only", "out", "run")  # no override may change these
ALL = "all"  # beside the names of protocols: options that they all share


def evaluation_options(config: Mapping[str, Any], model: str, protocols: Sequence[str]) -> dict[str, str]:
    """Return ``{key: value}`` for ``filip eval protocols=[…]`` beyond model, root, data and out.

    config: a study. model: one of its runs or peers. A later one wins: the study's ``eval.prompts``, without which a
    peer has the prompts and the ensemble of its authors, ``eval.overrides``, the peer's own ``eval``.
    """
    evaluation, peer = config["eval"], config.get("peers", {}).get(model)
    options = [f"prompts={evaluation.get('prompts', PROMPTS if peer is None else AUTO)}"]
    for overrides in (evaluation.get("overrides", {}), (peer or {}).get("eval", {})):
        options += overrides.get(ALL, [])
        options += [f"{protocol}.{text}" for protocol in protocols for text in overrides.get(protocol, [])]
    return dict(text.split("=", 1) for text in options)


def with_folders(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's ``eval`` with its defaults, and names for folders and tables, which are in ``places``.

    A path has a slash: ``retrieval: [photos/]``. It is what ``filip eval data=`` takes.
    """
    evaluation = {"root": "results/benchmarks", "zero_shot": [], "retrieval": [], **evaluation}
    places = dict(evaluation.get("places", {}))
    for protocol in PROTOCOLS:
        names = []
        for entry in evaluation.get(protocol, []):
            cards = _cards_at(entry, protocol) if "/" in entry else {}
            places |= dict.fromkeys(cards, entry)
            names += list(cards) or [entry]
        if names:
            evaluation[protocol] = names
    return {**evaluation, "places": places}


def _cards_at(path: str, protocol: str) -> dict[str, BenchmarkCard]:
    from filip.eval.own_data import cards_of  # with the readers of all layouts

    key = f"study config, key eval.{protocol}"
    if not Path(path).exists():
        raise UserError(f"{key}: {nothing_at(path, 'give a folder or a table, or the name of a card without a slash')}")
    kind = "classification" if protocol in ("zero_shot", "linear_probe") else "retrieval"
    cards = {card.name: card for card in cards_of(path)}
    fitting = {name: card for name, card in cards.items() if card.kind == kind}
    if not fitting:
        raise UserError(f"{key}: {path} has {' and '.join(card.kind for card in cards.values())}, no {kind}")
    return fitting


def card_of(evaluation: Mapping[str, Any], name: str) -> BenchmarkCard:
    """Return the card of a benchmark that a study names, or of a folder in its ``places``."""
    if (place := evaluation.get("places", {}).get(name)) is None:
        return load_card(name)
    from filip.eval.own_data import cards_of

    return next(card for card in cards_of(place) if card.name == name)


def check_evaluation_options(config: Mapping[str, Any]) -> None:
    """Refuse overrides that ``filip eval`` or their protocol does not have; name the key in the study."""
    places = {f"eval.overrides.{name}": (name, given) for name, given in config["eval"].get("overrides", {}).items()}
    for peer, entry in config.get("peers", {}).items():
        places |= {f"peers.{peer}.eval.{name}": (name, given) for name, given in entry.get("eval", {}).items()}
    for key, (protocol, given) in places.items():
        for text in given:
            name = text.split("=", 1)[0]
            options = _shared_options() if protocol == ALL else _settings_of(protocol)
            if name not in options:
                whose = "filip eval" if protocol == ALL else f"the protocol {protocol}"
                shared = f"; {name} is one of all protocols: give it in {ALL}" if name in _shared_options() else ""
                raise UserError(
                    f"study config, key {key}: {whose} has no option {name!r} that a study may set; "
                    f"it has {', '.join(options) or 'none'}{shared}"
                )


# The protocols are imported only for a study that sets some of their options: they import PyTorch.


def _settings_of(protocol: str) -> list[str]:
    from filip.eval.protocols import protocol_of

    return [field.name for field in fields(protocol_of(protocol).settings)]


def _shared_options() -> list[str]:
    """Return the options of ``filip eval`` that a study may set for any protocol."""
    from filip.eval.__main__ import EvaluationOptions

    return [field.name for field in fields(EvaluationOptions) if field.name not in SET_BY_THE_STUDY]
