"""The options that a study gives to its evaluations: its own, and those of somebody else's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from filip.errors import UserError
from filip.eval.cards import load_card
from filip.eval.families import AUTO, PROMPTS
from filip.study.tables import PROTOCOLS

SET_BY_THE_STUDY = ("model", "root", "data", "protocols", "only", "out", "run")  # no override may change these
ALL = "all"  # beside the names of protocols: options that all of them share


def evaluation_options(config: Mapping[str, Any], model: str, protocols: Sequence[str]) -> dict[str, str]:
    """Return ``{key: value}`` for ``filip eval protocols=[…]`` beyond model, root, data and out.

    config: a study. model: one of its runs or peers. A later one wins: the study's ``eval.prompts``, without which a
    peer has the prompts and the ensemble of its authors, ``eval.overrides``, the peer's own ``eval``.
    """
    evaluation, peer = config["eval"], config.get("peers", {}).get(model)
    given = [f"stem_maps={evaluation['stem_maps']}"] if "stem_maps" in evaluation and peer is None else []
    given.append(f"prompts={evaluation.get('prompts', PROMPTS if peer is None else AUTO)}")
    for overrides in (evaluation.get("overrides", {}), (peer or {}).get("eval", {})):
        given += overrides.get(ALL, [])
        given += [f"{protocol}.{text}" for protocol in protocols for text in overrides.get(protocol, [])]
    return dict(text.split("=", 1) for text in given)


def check_evaluation_options(config: Mapping[str, Any]) -> None:
    """Refuse overrides that ``filip eval`` or their protocol does not have; name the key in the study."""
    places = {f"eval.overrides.{name}": (name, given) for name, given in config["eval"].get("overrides", {}).items()}
    for peer, entry in config.get("peers", {}).items():
        places |= {f"peers.{peer}.eval.{name}": (name, given) for name, given in entry.get("eval", {}).items()}
    for key, (protocol, given) in places.items():
        for text in given:
            name = text.split("=", 1)[0]
            known = _shared_options() if protocol == ALL else _settings_of(protocol)
            if name not in known:
                whose = "filip eval" if protocol == ALL else f"the protocol {protocol}"
                shared = f"; {name} is one of all protocols: give it in {ALL}" if name in _shared_options() else ""
                raise UserError(
                    f"study config, key {key}: {whose} has no option {name!r} that a study may set; "
                    f"it has {', '.join(known) or 'none'}{shared}"
                )
    cards = {name for protocol, names in config["eval"].items() if protocol in PROTOCOLS for name in names}
    for name, loader in config["eval"].get("loaders", {}).items():
        if name not in cards:
            raise UserError(f"study config, key eval.loaders.{name}: no protocol of the study evaluates that card")
        try:
            load_card(name, loader)
        except UserError as error:
            raise UserError(f"study config, key eval.loaders.{name}: {error}") from error


# The protocols are imported only for a study that sets some of their options: they import PyTorch.


def _settings_of(protocol: str) -> list[str]:
    from filip.eval.protocols import protocol_of

    return [field.name for field in fields(protocol_of(protocol).settings)]


def _shared_options() -> list[str]:
    """Return the options of ``filip eval`` that a study may set for any protocol."""
    from filip.eval.__main__ import EvaluationOptions

    return [field.name for field in fields(EvaluationOptions) if field.name not in SET_BY_THE_STUDY]
