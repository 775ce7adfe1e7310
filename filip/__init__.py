"""FILIP (Yao et al., ICLR 2022): fine-grained image-text pre-training."""

__version__ = "0.2.0"
