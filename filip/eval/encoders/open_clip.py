"""Models of open_clip, as its users score them: own tokenizer, transform, normalisation and activation.

The activation is not part of the weights, and open_clip only warns when it does not fit: ``ViT-B-32`` with the tag
``openai`` is built with GELU, while those weights were trained with QuickGELU, and silently loses accuracy. So
the activation is looked up by tag here, and must be stated for a file. Folders and repositories on the hub
(``local-dir:``, ``hf-hub:``) carry their configuration, activation included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from filip.cli.extras import how_to_install
from filip.common.errors import UserError
from filip.eval.encoders import Loading
from filip.eval.encoders.two_tower import NOT_LOADED, TwoTowerEncoder, one_by_one, tells_words_apart
from filip.text.json_tokenizer import readable_token

ACTIVATIONS = ("gelu", "quickgelu")
SCHEMES = ("hf-hub:", "local-dir:")


class OpenClipEncoder(TwoTowerEncoder):
    """A model of open_clip.

    architecture: a built-in name, or ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``, which bring weights with them.
    weights: one of open_clip's tags, a local file, or None for its initialisation. activation: "gelu" or
    "quickgelu"; None: the tag's, or the architecture's where there are no weights.
    Raises UserError for an unknown architecture or tag, and for a file without an activation.
    """

    def __init__(self, architecture: str, weights: str | None, loading: Loading, activation: str | None = None):
        try:
            import open_clip
        except ImportError as error:
            raise UserError(f"open_clip: models need open_clip: {how_to_install('photos')}") from error
        carried = architecture.startswith(SCHEMES)
        extra: dict[str, Any] = {} if loading.image_size is None else {"force_image_size": loading.image_size}
        if not carried:
            if architecture not in open_clip.list_models():
                raise UserError(
                    f"open_clip has no architecture {architecture!r}; `python -c 'import open_clip; "
                    "print(open_clip.list_models())'` lists them"
                )
            activation = activation_of(architecture, weights, activation)
            extra |= {"pretrained": weights, "force_quick_gelu": activation == "quickgelu"}
        elif activation == "quickgelu":
            extra["force_quick_gelu"] = True
        name = f"open_clip:{architecture}" + (f":{weights}" if weights else "")
        with _one_sentence(name):
            model, _, transform = open_clip.create_model_and_transforms(architecture, device=loading.device, **extra)
            tokenizer = open_clip.get_tokenizer(architecture)
        suffix = "" if carried else f" {Path(weights).stem}" if weights else " (no weights)"
        family = "siglip" if "siglip" in architecture.lower() else "clip"
        super().__init__(f"open_clip {architecture}{suffix}", loading, family)
        self._hold(model, transform, tokenizer)

    def _hold(self, model: Any, transform: Callable[[Image.Image], Tensor], tokenizer: Any) -> None:
        """Keep a model, its transform and its tokenizer. UserError if it is to be token-wise and cannot be."""
        self.model = model.eval().to(self.device)
        quick = any(type(module).__name__ == "QuickGELU" for module in model.modules())
        self.details = {"activation": "quickgelu" if quick else "gelu"} | self.details
        self.transform = transform
        self.tokenizer = tokenizer
        self.text_tower = getattr(model, "text", model)  # CLIP has the text tower's modules itself
        self.context_length = int(tokenizer.context_length or model.context_length)
        size = model.visual.image_size
        self.image_size = int(size[0] if isinstance(size, tuple | list) else size)
        trunk = getattr(model.visual, "trunk", model.visual)
        rows_columns = getattr(getattr(trunk, "patch_embed", trunk), "grid_size", None)
        self.grid = (int(rows_columns[0]), int(rows_columns[1])) if rows_columns else (0, 0)
        if self.token_wise:
            self._check_tokens()

    @classmethod
    def from_name(cls, name: str, loading: Loading) -> OpenClipEncoder:
        """Load the model from ``ARCH[:WEIGHTS[:ACTIVATION]]``, ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``."""
        architecture, weights, activation = split_name(name)
        encoder = cls(architecture, weights, loading, activation)
        tells_words_apart(encoder)
        return encoder

    def _check_tokens(self) -> None:
        """Raise UserError now if the towers do not have a vector per patch and word."""
        if self.grid == (0, 0):
            raise UserError(
                f"tokens=true: {self.name} has no patch tokens, its image tower is not a vision transformer"
            )
        if getattr(self.model.visual, "attn_pool", None) is not None:
            raise UserError(f"tokens=true: {self.name} pools its patches into several queries before it projects them")
        if getattr(self.text_tower, "cls_emb", None) is not None or not hasattr(self.text_tower, "ln_final"):
            raise UserError(f"tokens=true: the text tower of {self.name} has no projection that fits its word tokens")

    def image_vectors(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        visual = self.model.visual
        if hasattr(visual, "trunk"):
            trunk = visual.trunk
            states = trunk.forward_features(pixels)[:, trunk.num_prefix_tokens :]
            pool = getattr(trunk, "attn_pool", None) or (lambda tokens: tokens[:, 0])
            # what timm's ViT does to the pooled token
            return one_by_one(lambda tokens: visual.head(trunk.head(trunk.fc_norm(pool(tokens)))), states)
        output = visual.forward_intermediates(
            pixels, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        states = output["image_intermediates"][-1]
        return states if visual.proj is None else states @ visual.proj

    def token_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = self.tokenizer(list(texts))
        if hasattr(self.tokenizer, "eot_token_id"):
            return ids, (ids == self.tokenizer.eot_token_id).int().argmax(1).long() + 1
        pad = self.tokenizer.tokenizer.pad_token_id
        # Where padding is a repeated end of text, the first one belongs to the text.
        ended = int(pad == self.tokenizer.tokenizer.eos_token_id)
        return ids, ((ids != pad).sum(1) + ended).clamp(1, ids.shape[1])

    def text_vectors(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids)

    def text_tokens(self, ids: Tensor) -> Tensor:
        tower = self.text_tower
        n = ids.shape[1]
        mask = getattr(tower, "attn_mask", None)
        states = tower.token_embedding(ids) + tower.positional_embedding[:n]
        states = tower.transformer(states, attn_mask=None if mask is None else mask[:n, :n])
        states = tower.ln_final(states)
        projection = tower.text_projection
        if projection is None:
            return states
        return projection(states) if isinstance(projection, torch.nn.Module) else states @ projection

    def tokens(self, text: str) -> list[str]:
        ids, lengths = self.token_ids([text])
        valid = ids[0, : int(lengths[0])].tolist()
        if hasattr(self.tokenizer, "decoder"):
            return [readable_token(self.tokenizer.decoder[i]) for i in valid]
        return [readable_token(token) for token in self.tokenizer.tokenizer.convert_ids_to_tokens(valid)]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        if hasattr(self.tokenizer, "encode"):
            return [len(self.tokenizer.encode(text)) + 2 for text in texts]
        return [len(ids) for ids in self.tokenizer.tokenizer(list(texts))["input_ids"]]


@contextmanager
def _one_sentence(model: str) -> Iterator[None]:
    """Raise what open_clip and the hub raise for a name that they cannot load as a UserError."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)  # it logs the failure as well, at length
    try:
        yield
    except NOT_LOADED as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"open_clip cannot load {model}: {lines[0] if lines else type(error).__name__}") from error
    finally:
        root.setLevel(level)


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """Split ``ARCH[:WEIGHTS[:ACTIVATION]]`` into its parts; None for a missing part. A scheme is part of ARCH."""
    activation = None
    if name.rpartition(":")[2] in ACTIVATIONS:
        name, _, activation = name.rpartition(":")
    if name.startswith(SCHEMES):
        return name, None, activation
    architecture, _, weights = name.partition(":")
    return architecture, weights or None, activation


def activation_of(architecture: str, weights: str | None, stated: str | None) -> str:
    """Return "gelu" or "quickgelu": as stated, or by the tag or (without weights) the architecture.

    Raises UserError if it is nowhere, or contradicts the architecture.
    """
    import open_clip

    built_in = "quickgelu" if (open_clip.get_model_config(architecture) or {}).get("quick_gelu") else "gelu"
    if weights is None:
        activation = stated or built_in
    elif stated is not None:
        activation = stated
    elif weights in open_clip.list_pretrained_tags_by_model(architecture):
        activation = "quickgelu" if open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu") else "gelu"
    elif not Path(weights).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UserError(
            f"open_clip:{architecture}:{weights} is neither a file nor a tag of that architecture (its tags: {tags})"
        )
    elif built_in == "quickgelu":
        activation = built_in
    else:
        name = f"open_clip:{architecture}:{weights}"
        raise UserError(
            f"the file {weights} does not say which activation its weights were trained with: give {name}:quickgelu "
            f"(OpenAI's, MetaCLIP's, DFN's, LAION-400M's) or {name}:gelu (most others)"
        )
    if built_in == "quickgelu" and activation == "gelu":
        raise UserError(f"{architecture} is built with QuickGELU; for weights with GELU take the plain architecture")
    return activation
