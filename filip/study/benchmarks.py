"""The options that a study gives to its evaluations: its own, and another project's model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from filip.common.errors import UserError
from filip.eval.families import AUTO, PROMPTS

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


def check_evaluation_options(config: Mapping[str, Any]) -> None:
    """Refuse overrides that ``filip eval`` or their protocol does not have; name the key in the study."""
    places = {f"eval.overrides.{name}": (name, given) for name, given in config["eval"].get("overrides", {}).items()}
    for peer, entry in config.get("peers", {}).items():
        places |= {f"peers.{peer}.eval.{name}": (name, given) for name, given in entry.get("eval", {}).items()}
    if not any(given for _, given in places.values()):
        return
    # Only for a study that sets some options: these import PyTorch.
    from filip.eval.__main__ import EvaluationOptions
    from filip.eval.protocols import protocol_of

    shared = [field.name for field in fields(EvaluationOptions) if field.name not in SET_BY_THE_STUDY]
    for key, (protocol, given) in places.items():
        options = shared if protocol == ALL else [field.name for field in fields(protocol_of(protocol).settings)]
        for name in (text.split("=", 1)[0] for text in given):
            if name not in options:
                whose = "filip eval" if protocol == ALL else f"the protocol {protocol}"
                there = f"; {name} is one of all protocols: give it in {ALL}" if name in shared else ""
                raise UserError(
                    f"study config, key {key}: {whose} has no option {name!r} that a study may set; "
                    f"it has {', '.join(options) or 'none'}{there}"
                )
