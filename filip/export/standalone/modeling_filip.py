"""Define FILIP for transformers: ``AutoModel.from_pretrained(folder, trust_remote_code=True)``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_filip import FilipConfig
from .filip_towers import Towers


@dataclass
class FilipOutput(ModelOutput):
    """Unit embeddings, and their similarities times the temperature's scale.

    image_embeds: ``[b1, n1, d]``, or ``[b1, d]`` for a pooled model. text_embeds: ``[b2, n2, d]`` or ``[b2, d]``.
    logits_per_image ``[b1, b2]`` and logits_per_text ``[b2, b1]``: for a token-wise model these are two different
    similarities (the mean over patches of the best word, and over words of the best patch). Without images or without
    texts only the other's embeddings are given. loss: both directions' mean cross-entropy, with return_loss=True.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class FilipModel(PreTrainedModel):
    """The dual encoder; a convolutional stem stays frozen while the towers above it are trained."""

    config_class = FilipConfig
    base_model_prefix = "filip"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: FilipConfig) -> None:
        super().__init__(config)
        self.towers = Towers(config.to_dict())
        self.post_init()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return unit embeddings of images: ``[b, n1, d]``, or ``[b, d]`` for a pooled model."""
        return self.towers.encode_image(pixel_values.to(self.dtype))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return unit embeddings of texts: ``[b, n2, d]``, 0 where the mask is, or ``[b, d]`` for a pooled model.

        attention_mask: as the tokenizer returns it; without it a text ends at its first [EOS].
        """
        return self.towers.encode_text(input_ids, self._mask(input_ids, attention_mask))

    def _mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        if attention_mask is not None:
            return attention_mask
        # [EOS] is the last of CLIP's vocabulary
        ends = (input_ids == self.config.text["vocab_size"] - 1).long()
        return (ends.cumsum(1) - ends == 0).long()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool = False,
        **_: object,
    ) -> FilipOutput:
        image = None if pixel_values is None else self.get_image_features(pixel_values)
        text = None if input_ids is None else self.get_text_features(input_ids, attention_mask)
        if image is None or text is None or input_ids is None:
            if image is None and text is None:
                raise ValueError("neither pixel_values nor input_ids are given")
            return FilipOutput(image_embeds=image, text_embeds=text)
        per_image, per_text = self.towers.logits(image, text, self._mask(input_ids, attention_mask))
        loss = None
        if return_loss:
            pairs = torch.arange(len(per_image), device=per_image.device)
            loss = (cross_entropy(per_image, pairs) + cross_entropy(per_text, pairs)) / 2
        return FilipOutput(loss, per_image, per_text, image, text)
