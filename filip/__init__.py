"""FILIP (Yao et al., ICLR 2022): fine-grained image-text pre-training.

    from filip import load

    model = load("filip.safetensors")
    scores = model.similarity(["cat.jpg"], ["a photo of a cat.", "a photo of a dog."])

Importing the package imports nothing else: torch is imported at the first use of :func:`~filip.api.load`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filip.api import Alignment, Model, Similarity, load

__version__ = "0.5.0"
__all__ = ["Alignment", "Model", "Similarity", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from filip import api

        return getattr(api, name)
    raise AttributeError(f"module 'filip' has no attribute {name!r}")
