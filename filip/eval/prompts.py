"""Prompt ensembles: the paper's Cartesian products, CLIP's template lists, the single prompts of retrieval.

A prompt of the paper is ``[prefix] {label}, [description]. [suffix].``; an empty part is left out with its
punctuation. A label with nothing around it (all parts empty) is used unchanged.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from filip import resources
from filip.common.errors import UserError
from filip.eval.families import AUTO, PROMPTS, prompt_file
from filip.eval.word_patch import Prompt


def compose(prefix: str, description: str, suffix: str, comma: bool = True) -> Prompt:
    """Make one prompt of the paper's form. comma: whether one is between label and description."""
    if not (prefix or description or suffix):
        return Prompt("", "")
    before = f"{prefix} " if prefix else ""
    after = (f", {description}" if comma else f" {description}") if description else ""
    after += "."
    after += f" {suffix.rstrip('.')}." if suffix else ""
    return Prompt(before, after)


def load_ensemble(path: str | Path, key: str) -> list[Prompt]:
    """Read the prompts of one benchmark from a YAML file of ensembles.

    An entry has either ``prefix``, ``description`` and ``suffix`` (lists; the ensemble is their Cartesian
    product) or ``templates`` (strings with ``{c}`` for the label), and ``count``, the number of prompts.
    Raises UserError if the entry is missing, malformed, or does not have ``count`` prompts.
    """
    entry = _entry(path, key)
    if "templates" in entry:
        prompts = [_from_template(path, key, str(t)) for t in entry["templates"]]
    else:
        missing = [part for part in ("prefix", "description", "suffix") if not isinstance(entry.get(part), list)]
        if missing:
            raise UserError(
                f"prompts '{key}' in {path}: {', '.join(missing)} should be a list "
                "(or give `templates:`, strings with {c} for the label)"
            )
        comma = bool(entry.get("comma", True))
        prompts = [
            compose(str(p), str(d), str(s), comma)
            for p, d, s in product(entry["prefix"], entry["description"], entry["suffix"])
        ]
    if len(prompts) != entry.get("count"):
        raise UserError(
            f"prompts '{key}' in {path} make {len(prompts)} prompts, but count says {entry.get('count')}: "
            "correct the lists or the count"
        )
    return prompts


DEFAULT = "a photo of a {c}."


def card_ensemble(prompts: str, key: str | None) -> list[Prompt]:
    """Return the prompts of a card: ``prompts`` itself if it has ``{c}`` in it, else the file's entry ``key``.

    A card without a key (your own data) gets :data:`DEFAULT`. Raises UserError as :func:`load_ensemble` does.
    """
    if "{c}" in prompts:
        return [_from_template("the command line", "prompts", prompts)]
    if key is not None:
        return load_ensemble(prompts, key)
    resources.find("prompts", prompts)  # not read for own data, but a name that is nowhere is a mistake
    return [_from_template("the defaults", "own data", DEFAULT)]


def load_retrieval_prompts(path: str | Path, key: str | None) -> tuple[Prompt, Prompt]:
    """Read the prompts around captions for (image to text, text to image); bare captions if ``key`` is None."""
    if key is None:
        return Prompt("", ""), Prompt("", "")
    entry = _entry(path, "retrieval").get(key)
    if not isinstance(entry, dict):
        raise UserError(
            f"{path} has no entry retrieval.{key}; add one with image_to_text and text_to_image, "
            "or leave `prompts` out of the card to rank bare captions"
        )
    return _single(path, key, entry, "image_to_text"), _single(path, key, entry, "text_to_image")


def alignment_prompt(prompts: str, card: str) -> Prompt:
    """Return the prompt of a card's labels in alignments: ``prompts`` if it has ``{c}`` in it, else the file's.

    Raises UserError for a template without exactly one ``{c}``.
    """
    if "{c}" in prompts:
        return _from_template("the command line", "prompts", prompts)
    file = PROMPTS if prompts == AUTO else prompts  # no other family has prompts for alignments
    entries = prompt_file(file).get("alignment", {})
    return _from_template(file, "alignment", str(entries.get(card, entries.get("default", DEFAULT))))


def _single(path: str | Path, key: str, entry: dict[str, Any], direction: str) -> Prompt:
    parts = entry.get(direction)
    if not isinstance(parts, dict):
        raise UserError(f"{path}: retrieval.{key}.{direction} should have prefix and suffix, but is {parts!r}")
    return compose(str(parts.get("prefix", "")), "", str(parts.get("suffix", "")))


def _entry(path: str | Path, key: str) -> dict[str, Any]:
    content = prompt_file(path)
    if not isinstance(content.get(key), dict):
        raise UserError(f"{path} has no prompts '{key}'; it has {', '.join(sorted(content))}")
    return content[key]


def _from_template(path: str | Path, key: str, template: str) -> Prompt:
    if template.count("{c}") != 1:
        raise UserError(f"prompts '{key}' in {path}: template {template!r} needs exactly one {{c}}")
    before, after = template.split("{c}")
    return Prompt(before, after)
