"""Show why keeping 25 % of the tokens can stop FILIP from learning short captions, and what helps: docs/token_wise.md.

    python -m bench.studies.token_selection                     # after `make demo`; two minutes a row on one core
    python -m bench.studies.token_selection only='[all tokens, paper]'

Prints a Markdown table, and for each row what the selection kept at steps 1, 50, 100 and so on. Two of the rows are
selections that the library does not offer, because they do not work: they are defined here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.demo_training import HEAD, Choose, DemoTraining, row, run
from filip.command import run_command
from filip.interaction import TokenChoice, choose_tokens
from filip.interaction.token_selection import best_of_each
from filip.progress import say

QUARTER = "token_keep_ratio=0.25"
KEPT = {"kept_bos_eos": "[BOS]/[EOS]", "kept_same_patch": "same patch", "kept_text_cosine": "text cosine"}


def own_pair_only(image: Tensor, text: Tensor, lengths: Tensor, keep_ratio: float, **_: Any) -> TokenChoice:
    """Score against the own caption (image) only: the choice itself then tells the loss which pair is which."""
    captions = text.detach().float().split(lengths.tolist())
    products = [i.float() @ c.T for i, c in zip(image.detach(), captions, strict=True)]
    of_images = torch.stack([p.amax(dim=1) for p in products])
    return best_of_each(of_images, torch.cat([p.amax(dim=0) for p in products]), lengths, keep_ratio)


def images_only(image: Tensor, text: Tensor, lengths: Tensor, keep_ratio: float, **kwargs: Any) -> TokenChoice:
    """Make the paper's choice of patches; every text token stays."""
    choice = choose_tokens(image, text, lengths, keep_ratio, **kwargs)
    return TokenChoice(choice.image_rows, torch.arange(len(text)), lengths)


def texts_only(image: Tensor, text: Tensor, lengths: Tensor, keep_ratio: float, **kwargs: Any) -> TokenChoice:
    """Make the paper's choice of text tokens; every patch stays."""
    choice = choose_tokens(image, text, lengths, keep_ratio, **kwargs)
    return choice._replace(image_rows=torch.arange(image.shape[0] * image.shape[1]))


ROWS: dict[str, tuple[list[str], Choose | None]] = {
    "all tokens": ([], None),
    "25 %, the paper's": ([QUARTER], None),
    "25 %, own pair only": ([QUARTER], own_pair_only),
    "25 % of the patches, all words": ([QUARTER], images_only),
    "25 % of the words, all patches": ([QUARTER], texts_only),
    "25 %, at least 8": ([QUARTER, "token_keep_minimum=8"], None),
    "25 %, contrast": ([QUARTER, "token_score=contrast"], None),
    "25 %, contrast, at least 6": ([QUARTER, "token_score=contrast", "token_keep_minimum=6"], None),
    "25 %, salience, at least 6": ([QUARTER, "token_score=salience", "token_keep_minimum=6"], None),
    "25 %, learned": ([QUARTER, "token_score=learned"], None),
    "25 %, learned, at least 6": ([QUARTER, "token_score=learned", "token_keep_minimum=6"], None),
}


def main(study: DemoTraining) -> None:
    """Train each row and print the table."""
    lines = [HEAD]
    for label, (overrides, choose) in ROWS.items():
        if study.only and label not in study.only:
            continue
        say(label)
        outcome = run(study, overrides, choose)
        lines.append(row(label, outcome))
        for step, metrics in outcome.metrics.items():
            kept = {name: metrics.get(f"tokens/{key}") for key, name in KEPT.items()}
            measured = [f"{name} {value:.2f}" for name, value in kept.items() if value is not None]
            say(f"  step {step}: {', '.join(measured) or 'all tokens'}")
    print("\n".join(lines))


if __name__ == "__main__":
    run_command(main, DemoTraining)
