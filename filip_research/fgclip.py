"""FG-CLIP (Xie et al. 2025, arXiv 2505.05071) and FG-CLIP 2 (arXiv 2510.10921), from folders as their authors publish.

The first is transformers' CLIP, the second its SigLIP 2. Both have dense features, which are their patches here, and
further text heads: ``:long`` reads captions of up to 248 or 196 tokens by stretched positions, ``:box`` (FG-CLIP 2)
descriptions of a part of a picture. No code of the folder runs. Read off the authors' code in November 2026:

- FG-CLIP squeezes a picture to a square; its dense features are the last layer's without attention between patches.
- FG-CLIP 2 keeps the shape of a picture, in 128 to 1,024 patches by its size. With ``image_size=`` or ``tokens=true``
  it sees squares, as only they have a grid. Its dense features are a pooling head with the patches as queries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from filip.errors import UserError, first_line
from filip.eval.encoders import Loading
from filip.eval.encoders.hugging_face import HuggingFaceEncoder
from filip.eval.encoders.two_tower import TwoTowerEncoder
from filip.hub import hub_asked

KEPT = 20  # positions at the start of a text that are not stretched
# above so many patches, so many are seen
BUDGETS = ((784, 1024), (576, 784), (256, 576), (128, 256), (0, 128))


class FgClipEncoder(HuggingFaceEncoder):
    """FG-CLIP. where: a folder or a repository of the hub. walk: "" for captions of 77 tokens, or "long"."""

    def __init__(self, where: str, walk: str, loading: Loading) -> None:
        super().__init__(where, loading)
        self.name = f"fgclip {where}" + (f" {walk}" if walk else "")
        self.transform = _Squeezed(self.transform, self.image_size)
        if walk:
            state, text = _tensors(where), self.model.text_model.embeddings
            table = _long_positions(state).to(self.device)
            text.position_embedding = nn.Embedding.from_pretrained(table)
            text.position_ids = torch.arange(len(table), device=self.device)[None]
            self.model.text_projection.load_state_dict({"weight": state["text_filip_projection.weight"]})
            self.context_length = len(table)

    @classmethod
    def from_name(cls, name: str, loading: Loading) -> HuggingFaceEncoder:
        where, colon, walk = name.rpartition(":")
        where, walk = (where, walk) if colon else (name, "")
        with hub_asked(local=Path(where).is_dir()):
            file = Path(_file(where, "config.json"))
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{file} is not JSON: {first_line(error)}") from error
            kind = (config.get("architectures") or [""])[0]
            second = config.get("model_type") == "fgclip2"
            if not second and kind != "FGCLIPModel":
                raise UserError(
                    f"{where} is not an FG-CLIP, but a {kind or config.get('model_type')!r}: try hf:{where}"
                )
            if walk not in (walks := ("", "long", "box") if second else ("", "long")):
                raise UserError(f"fgclip:{name}: after the folder may stand {', '.join(walks[1:])}")
            return FgClip2Encoder(where, config, walk, loading) if second else cls(where, walk, loading)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        tower = self.model.vision_model
        seen = tower(pixels, interpolate_pos_encoding=self.interpolate, output_hidden_states=True)
        states, last = seen.hidden_states[-2], tower.encoder.layers[-1]
        states = states + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(states)))
        states = states + last.mlp(last.layer_norm2(states))
        return self.model.visual_projection(tower.post_layernorm(states[:, 1:]))


class FgClip2Encoder(HuggingFaceEncoder):
    """FG-CLIP 2. config: the content of its config.json. walk: "" for captions of 64 tokens, "long" or "box"."""

    def __init__(self, where: str, config: dict[str, Any], walk: str, loading: Loading) -> None:
        from transformers import AutoTokenizer, Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model
        from transformers.models.siglip2.modeling_siglip2 import Siglip2MultiheadAttentionPoolingHead

        TwoTowerEncoder.__init__(self, f"fgclip {where}" + (f" {walk}" if walk else ""), loading, "siglip")
        self.siglip, self.tips = True, False
        state, text = _tensors(where), dict(config["text_config"])
        if walk:
            head = "longtext_head" if walk == "long" else "boxtext_head"
            state |= {f"text_model.head.{end}": state[f"{head}.{end}"] for end in ("weight", "bias")}
        if walk == "long":
            table = _long_positions(state, int(text.get("keep_len", KEPT)))
            state["text_model.embeddings.position_embedding.weight"] = table
            text["max_position_embeddings"] = len(table)
        whole: Any = Siglip2Config(text_config=text, vision_config=config["vision_config"])
        model, self.dense_head = (Siglip2Model(whole), Siglip2MultiheadAttentionPoolingHead(whole.vision_config))
        prefix = "dense_feature_head."
        tower_state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        try:
            self.dense_head.load_state_dict(tower_state)
            model.load_state_dict({name: state[name] for name in model.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{where} is not an FG-CLIP 2: {first_line(error)}") from error
        self.model = model.eval().to(self.device)
        self.dense_head.eval().to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(where)
        self.context_length = int(whole.text_config.max_position_embeddings)
        patch, patches = whole.vision_config.patch_size, whole.vision_config.num_patches
        squares = loading.image_size is not None or loading.tokens
        self.image_size = loading.image_size or patch * (int(patches**0.5) if squares else 32)
        if self.image_size % patch:
            raise UserError(f"image_size={self.image_size} is not a multiple of the model's patches of {patch}")
        self.grid = (self.image_size // patch,) * 2 if squares else (0, 0)
        self.transform = _Patches(Siglip2ImageProcessorPil.from_pretrained(where), patch, self.grid)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        return self._see(pixels).pooler_output

    def image_tokens(self, pixels: Tensor) -> Tensor:
        states, head = self._see(pixels).last_hidden_state, self.dense_head
        attended = head.attention(states, states, states, need_weights=False)[0]
        return attended + head.mlp(head.layernorm(attended))

    def _see(self, pixels: Tensor) -> Any:
        if pixels.ndim == 4:  # squares
            rows, columns = self.grid
            cut = pixels.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # [b, 3, rows, p, columns, p]
            values = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
            shapes = torch.tensor([self.grid], device=pixels.device).expand(len(pixels), 2)
        else:
            shapes = pixels[:, -1, :2].long()
            values = pixels[:, : int(shapes.prod(1).max())]
        mask = torch.arange(values.shape[1], device=pixels.device) < shapes.prod(1, keepdim=True)
        return self.model.vision_model(values, mask.long(), shapes)

    def token_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return super().token_ids([text.lower() for text in texts])

    def _read(self, ids: Tensor) -> Any:
        masked = "attention_mask" in self.tokenizer.model_input_names
        mask = (ids != self.tokenizer.pad_token_id).long() if masked else None
        return self.model.text_model(ids, attention_mask=mask)


def _file(where: str, name: str) -> str:
    try:
        from transformers.utils import cached_file
    except ImportError as error:
        raise UserError("fgclip: models need `pip install transformers`") from error
    try:
        path = cached_file(where, name)
    except OSError as error:
        raise UserError(f"there is no {name} at fgclip:{where}: {first_line(error)}") from error
    if path is None:  # a folder without that file
        raise UserError(f"there is no {name} in fgclip:{where}; give the folder that FG-CLIP's authors publish")
    return str(path)


def _tensors(where: str) -> dict[str, Tensor]:
    """Return the tensors of a folder or repository, which may be in several files."""
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    index = "model.safetensors.index.json"
    index_path = cached_file(where, index, _raise_exceptions_for_missing_entries=False)
    names = {"model.safetensors"}
    if index_path is not None:
        names = set(json.loads(Path(index_path).read_text(encoding="utf-8"))["weight_map"].values())
    return {key: value.float() for name in sorted(names) for key, value in load_file(_file(where, name)).items()}


def _long_positions(state: dict[str, Tensor], kept: int = KEPT) -> Tensor:
    start, rest = (state[f"text_model.embeddings.position_embedding_{s}.weight"] for s in ("ori", "res"))
    return torch.cat([start[:kept], rest[kept:]])


class _Squeezed:
    """A transform of a picture that is squeezed to a square. A class, so that workers can have it."""

    def __init__(self, transform: Any, side: int) -> None:
        self.transform, self.side = transform, side

    def __call__(self, image: Image.Image) -> Tensor:
        square = image.convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels: Tensor = self.transform(square)
        return pixels


class _Patches:
    """A transform of a picture to [3, S, S] where there is a grid, or else to the rows of its patches: [1025, 3 p p],
    of which those behind the picture's are 0 and the last begins with how many rows and columns it has.
    """

    def __init__(self, processor: Any, patch: int, grid: tuple[int, ...]) -> None:
        self.processor, self.patch, self.grid = processor, patch, grid

    def __call__(self, image: Image.Image) -> Tensor:
        rows, columns = self.grid
        image = image.convert("RGB")
        if rows:
            side = rows * self.patch, columns * self.patch
            image = image.resize(side, Image.Resampling.BILINEAR)
            pixels = self.processor(images=image, max_num_patches=rows * columns, return_tensors="pt")
            cut = pixels["pixel_values"][0].view(rows, columns, self.patch, self.patch, 3)
            return cut.permute(4, 0, 2, 1, 3).reshape(3, *side)
        n_patches = (image.width // self.patch) * (image.height // self.patch)
        budget = next(seen for above, seen in BUDGETS if n_patches > above or not above)
        pixels = self.processor(images=image, max_num_patches=budget, return_tensors="pt")
        values, shape = pixels["pixel_values"][0], pixels["spatial_shapes"][0]
        packed = values.new_zeros(BUDGETS[0][1] + 1, values.shape[1])
        packed[: len(values)] = values
        packed[-1, :2] = shape
        return packed
