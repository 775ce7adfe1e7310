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
SIGLIP = "Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023 (arXiv 2303.15343)"
SPARC = "Bica et al., Improving fine-grained understanding in image-text pre-training, ICML 2024 (arXiv 2401.09865)"
KARPATHY = (
    "Karpathy and Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, CVPR 2015 "
    "(arXiv 1412.2306)"
)
EXCITATION_BACKPROP = (
    "Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016 (arXiv 1608.00507), the pointing game"
)
WINOGROUND = (
    "Thrush et al., Winoground: Probing Vision and Language Models for Visio-Linguistic Compositionality, CVPR 2022 "
    "(arXiv 2204.03162)"
)
BAGS_OF_WORDS = (
    "Yuksekgonul et al., When and why vision-language models behave like bags-of-words, and what to do about it?, "
    "ICLR 2023 (arXiv 2210.01936)"
)
HALF_TRUTHS = "Kargi et al., Half-Truths Break Similarity-Based Retrieval, 2026 (arXiv 2602.23906)"
