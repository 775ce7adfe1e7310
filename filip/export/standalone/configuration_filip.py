"""Define FILIP's configuration for transformers."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class FilipConfig(PretrainedConfig):
    """The model's configuration. image, text: the towers' settings, with the keys of FILIP's own configuration."""

    model_type = "filip"

    def __init__(
        self,
        image: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        embed_dim: int = 256,
        interaction: str = "token_wise",
        pooling: str = "ends",
        pool_queries: int = 1,
        cls_in_interaction: bool = False,
        **kwargs: Any,
    ) -> None:
        self.image = image or {}
        self.text = text or {}
        self.embed_dim = embed_dim
        self.interaction = interaction
        self.pooling = pooling
        self.pool_queries = pool_queries
        self.cls_in_interaction = cls_in_interaction
        super().__init__(**kwargs)
