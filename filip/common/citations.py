"""The papers that terms of the loss and protocols of the evaluation come from, each written down once.

A term or a protocol names its own in ``citation``; docs/related.md and model cards list them from there. A package
outside of FILIP writes its own list.
"""

from __future__ import annotations

FILIP = "Yao et al., FILIP: Fine-grained Interactive Language-Image Pre-Training, ICLR 2022 (arXiv 2111.07783)"
CLIP = (
    "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021 "
    "(arXiv 2103.00020)"
)
BAGS_OF_WORDS = (
    "Yuksekgonul et al., When and why vision-language models behave like bags-of-words, and what to do about it?, "
    "ICLR 2023 (arXiv 2210.01936)"
)
