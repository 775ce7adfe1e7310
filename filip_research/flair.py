"""FLAIR (Xiao et al. 2025, arXiv 2412.03561), as its authors publish it: ``flair-merged30m.pt`` and three others.

The towers are a CLIP ViT's with plain GELU, their projections are called ``image_post`` and ``text_post``. An image is
compared with a text by what the text's vector finds among the projected patches: attention with eight heads, a norm
each for query, keys and values, and a zero to attend to where a text finds nothing. Read in November 2026 in a copy of
their code (lezhang7/colxlip, ``src/flair``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filip.errors import UserError, first_line
from filip.eval.encoders import Loading
from filip.eval.encoders.open_clip import OpenClipEncoder
from filip.eval.encoders.two_tower import TwoTowerEncoder
from filip.eval.half_precision import autocast
from filip_research.checkpoints import clip_of, read_checkpoint

HEADS = 8
PAIRS = 1 << 15  # pairs of image and text that attend at once: with 196 patches, 0.2 GB of weights


class FlairEncoder(OpenClipEncoder):
    """A checkpoint of FLAIR. Images are their patches and texts their vectors, both as projected; with ``tokens=true``
    a unit vector per patch and word. Raises UserError for another kind of file.
    """

    def __init__(self, file: str, loading: Loading) -> None:
        if loading.image_size is not None:
            raise UserError(f"flair:{file} sees pictures at its own resolution: leave out image_size=")
        TwoTowerEncoder.__init__(self, f"flair {Path(file).stem}", loading, "flair")
        state = read_checkpoint(file, "a checkpoint of FLAIR's authors, flair-….pt", "state_dict")
        if "image_post.proj" not in state:
            raise UserError(f"{file} is not a FLAIR: it has no image_post.proj")
        try:
            from open_clip import SimpleTokenizer, image_transform

            pooling = {name: state.pop(name) for name in list(state) if name.startswith("visual_proj.")}
            state["visual.proj"], state["text_projection"] = (state.pop(f"{s}_post.proj") for s in ("image", "text"))
            state.pop("logit_bias", None)
            model = clip_of(state, quick_gelu=False)
            width = state["visual.proj"].shape[1]
            self.pooling = _Pooling(width)
            self.pooling.load_state_dict({name.split(".", 1)[1]: value for name, value in pooling.items()})
        except ImportError as error:
            raise UserError("flair: models need `pip install open_clip_torch`") from error
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{file} is not a ViT of FLAIR's authors: {first_line(error)}") from error
        self.pooling.eval().to(loading.device)
        side = model.visual.image_size[0]
        self._hold(
            model,
            image_transform(side, is_train=False),
            SimpleTokenizer(context_length=len(state["positional_embedding"])),
        )
        if not loading.tokens:
            self.details |= {"similarity": "of a text and the patches that it attends to"}

    @classmethod
    def from_name(cls, name: str, loading: Loading) -> FlairEncoder:
        return cls(name, loading)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        return super().encode_images(pixels) if self.token_wise else self.dense(pixels)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        if self.token_wise:
            return super().encode_texts(texts)
        with autocast(self.device, self.dtype):
            return self.text_vectors(self.token_ids(texts)[0].to(self.device)).float(), None

    @torch.inference_mode()
    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Compare patches [i, n, d] with vectors [t, d] -> cosines [i, t] of each text with its attended patches."""
        unit, cosines = F.normalize(texts, dim=-1), []
        for part in images.split(max(1, PAIRS // max(1, len(texts)))):
            cosines.append((F.normalize(self.pooling(texts, part), dim=-1) * unit).sum(-1))
        return torch.cat(cosines)


class _Pooling(nn.Module):
    """The attention of texts [t, d] to patches [i, n, d] -> [i, t, d]; modules are named as in a checkpoint."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True, add_zero_attn=True)
        self.ln_q, self.ln_k, self.ln_v = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, texts: Tensor, patches: Tensor) -> Tensor:
        query = self.ln_q(texts).expand(len(patches), -1, -1)
        attended: Tensor = self.attn(query, self.ln_k(patches), self.ln_v(patches), need_weights=False)[0]
        return attended
