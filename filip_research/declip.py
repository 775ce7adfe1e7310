"""FILIP and DeFILIP as the authors of DeCLIP trained them (Cui et al. 2022, arXiv 2203.05796).

Their checkpoints (``ckpt.pth.tar`` of Sense-GVT/DeCLIP, ViT-B/32 on YFCC15M) hold towers in OpenAI's form and a linear
map to 256 numbers on each side. Read off their code in November 2026, and different from the paper's model:

- patches are mapped without the last LayerNorm;
- a text takes part with all 77 positions, the padding behind [EOS] included, in training and in their evaluation;
  ``declip:FILE:words`` leaves the padding out, as the paper does;
- the tokenizer has a token for masks before [BOS], so that [BOS] and [EOS] are one higher than CLIP's;
- pixels are normalised by ImageNet's mean and deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from filip.cli.extras import how_to_install
from filip.common.errors import UserError, first_line
from filip.common.files import nothing_at
from filip.eval.encoders import Loading
from filip.eval.encoders.two_tower import TwoTowerEncoder
from filip.text.tokenizer import BOS, token_counts, token_names, tokenize

CONTEXT, MASK_TOKENS = 77, 1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
TEXTS = ("words",)
HEAD = 64  # channels of an attention head in OpenAI's towers


class DeclipEncoder(TwoTowerEncoder):
    """A checkpoint of FILIP or DeFILIP by DeCLIP's authors, token-wise.

    file: as they published it. texts: "words" leaves the padding out. Raises UserError for another kind of file.
    """

    def __init__(self, file: str, texts: str, loading: Loading) -> None:
        super().__init__(f"declip {Path(file).name.split('.')[0]}", replace(loading, tokens=True))
        self.details = {"tokens of a text": "with padding, as trained" if not texts else "without padding"}
        if loading.image_size is not None:
            raise UserError(f"declip:{file} sees pictures at its own resolution: leave out image_size=")
        state = _read(file)
        self.all_positions, self.context_length = not texts, CONTEXT
        self.model = _towers(state, file).eval().to(loading.device)
        self.image_map, self.text_map = (
            _map(state, side).to(loading.device) for side in ("image_mapping", "text_mapping")
        )
        self.image_size = int(self.model.visual.image_size[0])
        self.grid = tuple(self.model.visual.grid_size)
        self.transform: Callable[[Image.Image], Tensor] = _transform(self.image_size)

    @classmethod
    def from_name(cls, name: str, loading: Loading) -> DeclipEncoder:
        file, _, texts = name.rpartition(":")
        return cls(file, texts, loading) if texts in TEXTS else cls(name, "", loading)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        output = self.model.visual.forward_intermediates(
            pixels, indices=1, normalize_intermediates=False, intermediates_only=True, output_fmt="NLC"
        )
        return self.image_map(output["image_intermediates"][-1])

    def token_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, lengths = tokenize(list(texts), CONTEXT)
        ids = nn.functional.pad(ids, (0, CONTEXT - ids.shape[1]))
        ids[ids >= BOS] += MASK_TOKENS
        return ids, torch.full_like(lengths, CONTEXT) if self.all_positions else lengths

    def text_tokens(self, ids: Tensor) -> Tensor:
        tower = self.model
        states = tower.token_embedding(ids) + tower.positional_embedding
        return self.text_map(tower.ln_final(tower.transformer(states, attn_mask=tower.attn_mask)))

    def tokens(self, text: str) -> list[str]:
        names = token_names(text, CONTEXT)
        return names + ["[PAD]"] * (CONTEXT - len(names)) if self.all_positions else names

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return token_counts(list(texts))


def _read(file: str) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise UserError(nothing_at(Path(file), "give a checkpoint of DeCLIP's authors, ckpt.pth.tar"))
    try:
        # With their optimiser's state, a checkpoint holds tensors, numbers and strings alone.
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"torch cannot read {file}: {first_line(error)}") from error
    tensors = content.get("model", content) if isinstance(content, dict) else {}
    state = {str(name).removeprefix("module."): value for name, value in tensors.items()}
    if missing := [f"{name}.weight" for name in ("image_mapping", "text_mapping") if f"{name}.weight" not in state]:
        raise UserError(
            f"{file} is not a FILIP of DeCLIP's authors: it has no {missing[0]}, nor have their CLIP, SLIP and DeCLIP"
        )
    return state


def _towers(state: dict[str, Tensor], file: str) -> Any:
    """Build open_clip's towers, which compute what theirs do, with the checkpoint's weights."""
    text, visual = "encode_text.", "visual."
    try:
        visual_state = {name: value for name, value in state.items() if name.startswith(visual)}
        visual_state |= {name.removeprefix(text): value for name, value in state.items() if name.startswith(text)}
        visual_state["logit_scale"] = state["logit_scale"].reshape(())
        visual_state["text_projection"] = visual_state.pop("text_projection.weight").T
        del visual_state["text_projection.bias"]  # only the pooled vector has it, which no token-wise score reads
        return _clip_of(visual_state)
    except ImportError as error:
        raise UserError(f"declip: models need open_clip: {how_to_install('photos')}") from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} is not a ViT of DeCLIP's authors: {first_line(error)}") from error


def _clip_of(state: dict[str, Tensor]) -> Any:
    """Build open_clip's ViT of the sizes that tensors have, with heads of 64 channels as OpenAI's, and load them.

    Raises KeyError, ValueError or RuntimeError if they are not such a model's.
    """
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    width, _, patch, _ = state["visual.conv1.weight"].shape
    side = patch * round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    vocabulary, text_width = state["token_embedding.weight"].shape
    context = len(state["positional_embedding"])
    model = CLIP(
        state["visual.proj"].shape[1],
        CLIPVisionCfg(_blocks(state, "visual."), width, HEAD, image_size=side, patch_size=patch),
        CLIPTextCfg(context, vocabulary, width=text_width, heads=text_width // HEAD, layers=_blocks(state, "")),
        quick_gelu=True,
    )
    model.load_state_dict(state)
    return model


def _blocks(state: dict[str, Tensor], prefix: str) -> int:
    start = f"{prefix}transformer.resblocks."
    return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})


def _map(state: dict[str, Tensor], name: str) -> nn.Linear:
    weight = state[f"{name}.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": state[f"{name}.bias"]})
    return layer.eval().requires_grad_(False)


def _transform(size: int) -> Callable[[Image.Image], Tensor]:
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    return Compose([_rgb, Resize(round(size * 256 / 224)), CenterCrop(size), ToTensor(), Normalize(MEAN, STD)])


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")
