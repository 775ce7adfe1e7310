"""Define the dual encoder: image and text towers, per-token or pooled unit embeddings, one learnable temperature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filip.common.device import keep_compiled_kernels_apart
from filip.common.errors import UserError
from filip.models.config import ModelConfig
from filip.models.image_tower import ImageTower
from filip.models.pooling import Pooling
from filip.models.reduction import TokenReduction
from filip.models.text_tower import TextTower
from filip.text import tokenizer as clip_tokenizer
from filip.text.json_tokenizer import CaptionTokenizer, JsonTokenizer


class TextFeatures(NamedTuple):
    """Unit text tokens of a batch without padding: caption j owns ``lengths[j]`` consecutive rows."""

    tokens: Tensor  # [T, d] float32, T = lengths.sum()
    lengths: Tensor  # [b] int64


def without_ends(text: TextFeatures) -> TextFeatures:
    """Return ``text`` without each caption's first and last token, [BOS] and [EOS], unless it has no others."""
    lengths = text.lengths
    ends = lengths.cumsum(0)
    keep = torch.ones(len(text.tokens), dtype=torch.bool, device=lengths.device)
    long = lengths > 2
    keep[(ends - lengths)[long]] = False
    keep[(ends - 1)[long]] = False
    return TextFeatures(text.tokens[keep], torch.where(long, lengths - 2, lengths))


class PooledFeatures(NamedTuple):
    """One unit vector per image and per text, which ``model.pooling`` makes from their projected tokens."""

    image: Tensor  # [b, d] float32; d is a token's width, times the heads
    text: Tensor  # [b, d] float32


class Encoded(NamedTuple):
    """Output of a forward pass, for the loss."""

    image: Tensor  # [b, n1, d] (token_wise) or [b, d] (pooled)
    text: TextFeatures | Tensor  # packed tokens (token_wise) or [b, d] (pooled)
    logit_scale: Tensor  # [1], the factor itself, not its logarithm
    pooled: PooledFeatures | None = None  # in addition to tokens, if requested
    further: TextFeatures | None = None  # further captions' tokens, or their vectors as one token each; some have none

    def apart(self, further_lengths: Tensor) -> Encoded:
        """Return the captions of the b images apart from those after them, which are ``further``.

        further_lengths: [b] int64 on the host; 0: that image has no further caption, and the batch none for it.
        """
        b = len(self.image)
        pooled = self.pooled and self.pooled._replace(text=self.pooled.text[:b])
        if isinstance(self.text, Tensor):
            further = TextFeatures(self.text[b:], (further_lengths > 0).long())
            return self._replace(text=self.text[:b], pooled=pooled, further=further)
        tokens, lengths = self.text
        own = int(lengths[:b].sum())
        further = TextFeatures(tokens[own:], further_lengths)
        return self._replace(text=TextFeatures(tokens[:own], lengths[:b]), pooled=pooled, further=further)


class DualEncoder(nn.Module):
    """FILIP, or CLIP with the same encoders when ``config.interaction`` is ``pooled``.

    Embeddings are unit vectors in float32 whatever the precision of the towers: normalising costs nothing, and
    lower precision for communication is the job of the interaction's ``transport_dtype``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.check()
        self.image = ImageTower(config.image, config.embed_dim)
        self.text = TextTower(config.text, config.embed_dim)
        self.json_tokenizer: JsonTokenizer | None = None  # read when it is needed, or set by what loads a model
        # one element instead of zero dimensions: DeepSpeed partitions no scalars
        self.logit_scale = nn.Parameter(torch.full((1,), -math.log(config.init_temperature)))
        self.image_pool: Pooling | None = None
        self.text_pool: Pooling | None = None
        if config.pooling != "ends":
            self.image_pool = Pooling(config.embed_dim, config.pooling, config.pool_queries)
            self.text_pool = Pooling(config.embed_dim, config.pooling, config.pool_queries)
        self.reduction = None if config.reduction is None else TokenReduction(config.embed_dim, config.reduction)
        self.set_interaction(config.interaction)
        if config.cls_in_interaction:
            self.require_cls("model.cls_in_interaction", "model.cls_in_interaction=false")
        self.set_gradient_checkpointing(config.gradient_checkpointing)

    def set_interaction(self, interaction: str) -> None:
        """Compare images and texts by all tokens or by one vector each; the weights are the same for both."""
        if interaction == "pooled":
            self.require_vector("model.interaction=pooled", "model.interaction=token_wise")
            if self.config.reduction is not None:
                raise UserError(
                    f"the model compares {self.config.reduction} learned tokens (model.reduction), which "
                    "model.interaction=pooled does not read; leave it token_wise"
                )
        self.config.interaction = interaction

    def set_gradient_checkpointing(self, enable: bool) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.image.trunk.set_grad_checkpointing(enable)
        self.text.grad_checkpointing = enable

    def compile_blocks(self, **options: Any) -> None:
        """Let torch compile every transformer block in place; weights and their names stay as they are.

        Blocks of a tower share their code, so that each tower is compiled once. The layout of packed captions
        depends on the data and is computed outside of the blocks: no graph breaks, and no new graph for other lengths.
        """
        keep_compiled_kernels_apart()
        for block in self.image.trunk.blocks:
            block.compile(**options)
        for block in self.text.blocks:
            block.compile(dynamic=True, **options)

    @property
    def tokenizer(self) -> CaptionTokenizer:
        """Return the tokenizer of the text tower. Raises UserError if its file is unreadable or has too many tokens."""
        text = self.config.text
        if text.tokenizer is None:
            return clip_tokenizer
        if self.json_tokenizer is None:
            self.json_tokenizer = JsonTokenizer.from_file(text.tokenizer)
        if self.json_tokenizer.size > text.vocab_size:
            raise UserError(
                f"model.text.tokenizer={text.tokenizer} has {self.json_tokenizer.size} tokens and the text tower "
                f"{text.vocab_size} word vectors: give the tokenizer that the model was trained with"
            )
        return self.json_tokenizer

    @property
    def grid(self) -> tuple[int, int]:
        """Return rows and columns of the patches that are compared; (0, 0) for learned tokens, which lie nowhere."""
        return self.image.grid if self.reduction is None else (0, 0)

    @property
    def image_size(self) -> int:
        return self.config.image.image_size

    def forward(self, pixels: Tensor, ids: Tensor, lengths: Tensor, tokens_and_vectors: bool = False) -> Encoded:
        """Run both encoders and the scale in one call, so that engines that hook ``forward`` see every parameter.

        ``tokens_and_vectors`` requests both, whatever the interaction; ``model.pooling=ends`` needs a [CLS] token.
        There may be more captions than images: see :meth:`Encoded.apart`.
        """
        token_wise = tokens_and_vectors or self.config.interaction == "token_wise"
        states = self.image(pixels)
        text: TextFeatures | Tensor
        vectors = None
        if token_wise:
            words = self._word_states(ids, lengths)
            text = TextFeatures(_unit(words), lengths)
            if tokens_and_vectors:
                vectors = PooledFeatures(self._image_vectors(states), self._text_vectors(words, lengths))
        else:
            text = self._pooled_text(ids, lengths)
        return Encoded(self._image_embeddings(states, token_wise), text, self.scale(), vectors)

    def require_vector(self, what: str, otherwise: str) -> None:
        """Raise UserError unless an image has one vector, which ``what`` needs; ``pooling=ends`` takes [CLS]."""
        if self.config.pooling == "ends":
            self.require_cls(what, f"model.pooling=mean, or {otherwise}")

    def require_cls(self, what: str, otherwise: str) -> None:
        """Raise UserError if the image tower has no [CLS] token, which ``what`` needs; ``otherwise`` does without."""
        if not self.image.has_cls:
            raise UserError(
                f"{what} needs a [CLS] token, and model.image.timm={self.config.image.timm!r} has none; choose a ViT "
                f"with one (e.g. vit_base_patch32_clip_224), or {otherwise}"
            )

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode ``[b, 3, H, W]`` to unit tokens ``[b, n1, d]``, row by row, or vectors ``[b, d]`` (pooled)."""
        return self.image_embeddings(self.image(pixels))

    def image_embeddings(self, tokens: Tensor) -> Tensor:
        """Return the output of :meth:`encode_image` from the image tower's tokens ``[b, tokens, d]``."""
        return self._image_embeddings(tokens, self.config.interaction == "token_wise")

    def _image_embeddings(self, tokens: Tensor, token_wise: bool) -> Tensor:
        if not token_wise:
            return self._image_vectors(tokens)
        patches = tokens[:, self.image.prefix_tokens :]
        if self.reduction is not None:
            patches = self.reduction(patches)
        if self.config.cls_in_interaction:
            patches = torch.cat([tokens[:, :1], patches], dim=1)
        return _unit(patches)

    def _image_vectors(self, tokens: Tensor) -> Tensor:
        if self.image_pool is None:
            return _unit(tokens[:, 0])
        patches = tokens[:, self.image.prefix_tokens :]
        counts = torch.full((len(patches),), patches.shape[1])
        return _unit(self.image_pool(patches.flatten(0, 1), counts))

    def encode_text(self, ids: Tensor, lengths: Tensor) -> TextFeatures | Tensor:
        """Encode captions ``ids [b, n2]`` int64, padded after [EOS], with ``lengths [b]`` ([BOS] and [EOS] included).

        Returns packed unit tokens (token_wise) or vectors ``[b, d]`` (pooled). The embeddings of a caption do not
        depend on how far its row is padded.
        """
        if self.config.interaction == "token_wise":
            return TextFeatures(_unit(self._word_states(ids, lengths)), lengths)
        return self._pooled_text(ids, lengths)

    def _pooled_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        if self.text_pool is None:
            return _unit(self._word_states(ids, lengths, only_last=True))
        return self._text_vectors(self._word_states(ids, lengths), lengths)

    def _text_vectors(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Return the vectors of packed tokens, not yet normalised."""
        if self.text_pool is None:
            return _unit(words[lengths.cumsum(0) - 1])
        return _unit(self.text_pool(words, lengths))

    def _word_states(self, ids: Tensor, lengths: Tensor, only_last: bool = False) -> Tensor:
        if ids.shape[1] > self.text.context_length:
            raise ValueError(f"captions of {ids.shape[1]} tokens; the text tower takes {self.text.context_length}")
        return self.text(ids, lengths, only_last=only_last)

    def scale(self) -> Tensor:
        """Return the factor of the similarities, [1] float32; see :mod:`filip.models.temperature`.

        Not clamped here: the optimiser clamps the parameter to ``log(max_logit_scale)``, and its exponential exceeds
        the maximum by rounding (100.0000076 in float32, 100.04 from a float16 copy). A clamp of the result would then
        have gradient 0, and the temperature could never move again.
        """
        return self.logit_scale.float().exp()

    def resize_images(self, image_size: int) -> None:
        """Accept images with another side from now on; position embeddings are interpolated."""
        self.image.resize(image_size)
        self.config.image.image_size = image_size


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def build_model(config: ModelConfig) -> DualEncoder:
    """Build a freshly initialised model (torch's global generator), or one without values on the meta device."""
    return DualEncoder(config)
