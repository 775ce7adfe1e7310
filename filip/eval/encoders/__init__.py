"""Models seen from evaluation: pixels and strings in, unit vectors or unit tokens out.

A model is given by name: a file or folder of this project, or ``PREFIX:NAME`` with a prefix of :func:`backends`. To add
a kind of model, write a class with the methods of :class:`Encoder` and a ``from_name``, and add its line to
``BACKENDS``, or, in your own package, an entry point of the group ``filip.encoders``; filip_research has examples.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filip import resources
from filip.common.device import evaluation_precision, keep_freed_memory, resolve
from filip.common.errors import UserError, nearest
from filip.common.files import nothing_at
from filip.common.plugins import load_plugins
from filip.eval.fit import FITS, Padded
from filip.runs.saved_files import STATE

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder(Protocol):
    """A model as a scorer needs it. ``token_wise``: a vector per token, not one per image or text.

    ``family``: its protocol is used for scoring (:mod:`filip.eval.families`). ``image_size``: the side of a picture in
    pixels; 0 if the model sees each picture in its own shape, in as many tokens as that takes.
    ``grid``: rows and columns of the patches; (0, 0) if the model has no ``patches``. ``details``: what else a
    result file should say of the model, such as an activation that its weights do not imply. ``dtype``: in which the
    towers compute and tokens are kept; ``device``: where both are.
    """

    name: str
    family: str
    token_wise: bool
    image_size: int
    context_length: int  # tokens of a text, [BOS] and [EOS] included; longer texts are cut
    grid: tuple[int, int]
    device: str
    dtype: torch.dtype
    details: dict[str, str]
    transform: Callable[[Image.Image], Tensor]

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode pixels -> [b, d], or [b, n1, d] if token-wise; float32, unit length.

        pixels: [b, 3, H, W]; without an ``image_size`` what :func:`stacked` makes of pictures. Rows of zeros after the
        tokens of an image are padding.
        """

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Encode texts -> ([t, d], None), or if token-wise (packed tokens [T, d], lengths [t] int64); unit length."""

    def probe_features(self, pixels: Tensor) -> Tensor:
        """Return the input of a linear probe [b, width], not normalised: the mean of the encoder's patch tokens."""

    def patches(self, pixels: Tensor) -> Tensor:
        """Return one unit vector per image patch [b, rows * columns, d], also for a pooled model (for pictures)."""

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text as strings, [BOS] and [EOS] included."""

    def words(self, texts: Sequence[str]) -> list[Tensor]:
        """Return unit vectors of each text's tokens [n2, d], [BOS] and [EOS] included; also for a pooled model."""

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text would have if nothing were cut."""


def stacked(pictures: Sequence[Tensor]) -> Any:
    """Return pictures [3, H, W] as one tensor [b, 3, H, W], or as a list where they differ in shape."""
    alike = all(picture.shape == pictures[0].shape for picture in pictures)
    return torch.stack(list(pictures)) if alike else list(pictures)


def joined(features: Sequence[Tensor]) -> Tensor:
    """Return features of images [b, d] or [b, n1, d], one batch after the other, padded by zeros to the largest n1."""
    longest = max(part.shape[-2] for part in features)
    if features[0].ndim == 3:
        features = [F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in features]
    return torch.cat(list(features))


@dataclass(frozen=True)
class Loading:
    """The settings with which a model is loaded.

    image_size: evaluate at another resolution, position embeddings are interpolated; None: the model's own.
    device: a torch device. dtype: see :func:`dtype_of`. tokens: score a pooled model token-wise, by the
    vectors that its projections make of every patch and word. trust_remote_code: run code of the
    model's folder.
    """

    image_size: int | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    tokens: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Backend:
    """A kind of model: where its class is (``class.from_name(name, loading)``), and the form of its name.

    converts: the class is a :class:`FilipEncoder`; its model is one of this project, which a training may start from.
    """

    module: str
    encoder: str
    form: str
    converts: bool = False

    def load(self, name: str, loading: Loading) -> Encoder:
        return getattr(importlib.import_module(self.module), self.encoder).from_name(name, loading)


BACKENDS = {
    "open_clip": Backend(
        "filip.eval.encoders.open_clip",
        "OpenClipEncoder",
        "open_clip:ARCHITECTURE[:TAG], open_clip:ARCHITECTURE:FILE:ACTIVATION, open_clip:local-dir:FOLDER or "
        "open_clip:hf-hub:OWNER/NAME",
    ),
    "hf": Backend(
        "filip.eval.encoders.hugging_face",
        "HuggingFaceEncoder",
        "hf:FOLDER or hf:OWNER/NAME (transformers: CLIP, SigLIP, …)",
    ),
    "mv": Backend(
        "filip.eval.encoders.multi_vector",
        "MultiVectorEncoder",
        "mv:FOLDER (a MultiVectorEncoder of sentence-transformers)",
    ),
}
OWN_PROJECTIONS = "of every patch and word, by the pooled model's own projections"


@functools.cache
def backends() -> dict[str, Backend]:
    """Return the kinds of models by their prefix, including other installed packages."""
    return BACKENDS | load_plugins("filip.encoders", Backend, BACKENDS)


def forms() -> str:
    """Return the forms of a model's name, for help and messages."""
    local = "emoji (it comes with the package), a .safetensors file, a run folder, a checkpoint"
    return ", ".join([local, *(backend.form for backend in backends().values())])


def load_encoder(
    model: str,
    image_size: int | None = None,
    device: str = "cpu",
    *,
    precision: str = "fp32",
    tokens: bool = False,
    trust_remote_code: bool = False,
    fit: str = "crop",
) -> Encoder:
    """Load a model by its name.

    model: a ``.safetensors`` file written by training, a run folder or a DeepSpeed checkpoint of ours, or a name with a
    prefix of :func:`backends`. A folder that sentence-transformers saved needs no prefix.
    device: a torch device, or "auto": a GPU where there is one. precision: "fp32", "bf16", "fp16", "auto".
    image_size, tokens, trust_remote_code: see :class:`Loading`. fit: "crop": pictures that are not square as
    the model's authors do, mostly by their centre; "pad": whole, in a square with grey borders.
    Raises UserError, one sentence, if there is no such model or device, or it cannot be loaded that way.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size={image_size}: a side of the input in pixels must be at least 1")
    if fit not in FITS:
        raise UserError(f"fit={fit}: a picture that is not square is fitted by {', '.join(FITS)}")
    device = str(resolve(device))
    loading = Loading(image_size, device, dtype_of(precision, device), tokens, trust_remote_code)
    encoder = _load(model, loading)
    if fit == "pad" and encoder.image_size:
        encoder.transform = Padded(encoder.transform)
        encoder.details = {**encoder.details, "fit": "pad"}
    return encoder


def converted(model: str) -> Any:
    """Return the model of this project that ``PREFIX:NAME`` is read into, on the CPU; None for any other name."""
    prefix, colon, name = model.partition(":")
    if not (colon and prefix in backends() and backends()[prefix].converts):
        return None
    encoder: Any = backends()[prefix].load(name, Loading())
    return encoder.model


def _meant(prefix: str, name: str) -> str:
    """Return the model that was probably meant by a name that is no file; "" if it resembles none."""
    if prefix:
        return next((f"{near}:{name}" for near in nearest(prefix, backends())), "")
    if near := nearest(name, resources.WEIGHTS):
        return near[0]
    if re.fullmatch(r"(ViT|RN\d|convnext|coca|EVA|MobileCLIP|nllb|xlm|roberta|SigLIP)[\w.-]*", name, re.IGNORECASE):
        return f"open_clip:{name}:WEIGHTS"
    return f"hf:{name}" if re.fullmatch(r"[\w-]+/[\w.-]+", name) and not Path(name).parent.exists() else ""


def _load(model: str, loading: Loading) -> Encoder:
    model = resources.weights(model)
    prefix, colon, name = model.partition(":")
    if colon and prefix in backends():
        if not name:
            raise UserError(f"model={model}: a name is missing after the colon; write {backends()[prefix].form}")
        return backends()[prefix].load(name, loading)
    place = Path(model)
    if (place / "modules.json").is_file():
        return BACKENDS["mv"].load(model, loading)
    if not place.exists():
        prefixes = ", ".join(backends())
        advice = f"give emoji, a .safetensors file, a run folder, or PREFIX:NAME, e.g. hf:OWNER/NAME ({prefixes})"
        meant = _meant(prefix, name) if colon else _meant("", model)
        raise UserError(
            f"no model at {model}; did you mean {meant}? Otherwise {advice}" if meant else nothing_at(model, advice)
        )
    loaded = _own_model(place, loading.image_size).to(loading.device)
    if loading.device == "cpu":
        if loaded.image.stem is not None:
            loaded.image.patch_embed.backbone = loaded.image.stem.folded()
        keep_freed_memory()
    return FilipEncoder(loaded, place.stem, loading=loading, checkpoint=(place / STATE).is_file())


def _own_model(place: Path, image_size: int | None) -> Any:
    """Load a model of this project, in evaluation mode, from a file, a run folder or a checkpoint."""
    if place.is_file():
        from filip.models import load_model

        return load_model(place, image_size=image_size).eval()
    from filip.runs.source import read_source

    model = read_source(str(place)).model
    if image_size is not None and image_size != model.image_size:
        model.resize_images(image_size)
    return model.eval()


class FilipEncoder:
    """A model of this project in memory: FILIP, or its CLIP baseline, by its config.

    model: a :class:`filip.models.DualEncoder` on ``device``, in evaluation mode; a training loop may wrap the
    model it trains to see how it is doing. loading: device, dtype and tokens; its image size has been applied.
    checkpoint: whether it is one of a training's, so that not every word that it will know is learned yet.
    """

    def __init__(
        self, model: Any, name: str, device: str = "cpu", loading: Loading | None = None, checkpoint: bool = False
    ):
        from filip.images.eval_transform import EvalTransform

        loading = loading or Loading(device=device)
        self.model: Any = model
        self.name, self.family = name, "filip"
        self.checkpoint = checkpoint
        self.device, self.dtype = loading.device, loading.dtype
        trained_so = self.model.config.interaction == "token_wise"
        self.token_wise = trained_so or loading.tokens
        self.details: dict[str, str] = {} if trained_so == self.token_wise else {"tokens": OWN_PROJECTIONS}
        self._projects_all = self.token_wise and not trained_so
        self.image_size = int(self.model.image_size)
        self.grid: tuple[int, int] = self.model.grid
        self.context_length = self.model.text.context_length
        self.transform: Callable[[Image.Image], Tensor] = EvalTransform(self.image_size)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        if self._projects_all:
            return self._patches(pixels)
        with autocast(self.device, self.dtype):
            return self.model.encode_image(pixels.to(self.device)).float()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        if self._projects_all:
            return self._words(texts)
        ids, lengths = self._ids(texts)
        with autocast(self.device, self.dtype):
            features = self.model.encode_text(ids, lengths)
        if self.token_wise:
            from filip.models.dual_encoder import without_ends

            taking_part = without_ends(features) if self.model.config.exclude_special_tokens else features
            return taking_part.tokens.float(), taking_part.lengths
        return features.float(), None

    @torch.inference_mode()
    def probe_features(self, pixels: Tensor) -> Tensor:
        with autocast(self.device, self.dtype):
            features = self.model.image.trunk(pixels.to(self.device))[:, self.model.image.prefix_tokens :]
        return features.float().mean(1).cpu()  # of the patches before the projection

    def patches(self, pixels: Tensor) -> Tensor:
        if self.grid == (0, 0):
            raise UserError(
                f"{self.name} compares learned tokens (model.reduction), which lie on no patch: there is nothing to "
                "point with"
            )
        return self._patches(pixels).cpu()

    @torch.inference_mode()
    def _patches(self, pixels: Tensor) -> Tensor:
        # The tower projects every token; training of a pooled model just ignores all but one.
        with autocast(self.device, self.dtype):
            tokens = self.model.image(pixels.to(self.device))
        return self._unit_patches(tokens)

    def _unit_patches(self, tokens: Tensor) -> Tensor:
        return self._unit_tokens(tokens[:, self.model.image.prefix_tokens :], self.model.image_pool)

    def _unit_tokens(self, tokens: Tensor, pool: Any) -> Tensor:
        """Return unit vectors of tokens [..., d], where a pooled model has heads with their projections."""
        pooled = pool is not None and self.model.config.interaction == "pooled"
        return F.normalize(pool.each(tokens.float()) if pooled else tokens.float(), dim=-1)

    def tokens(self, text: str) -> list[str]:
        return self.model.tokenizer.token_names(text, self.context_length)

    def words(self, texts: Sequence[str]) -> list[Tensor]:
        vectors, lengths = self._words(texts)
        return list(vectors.cpu().split(lengths.tolist()))

    @torch.inference_mode()
    def _words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, lengths = self._ids(texts)
        with autocast(self.device, self.dtype):
            vectors = self.model.text(ids, lengths)  # every token, even of a pooled model
        return self._unit_tokens(vectors, self.model.text_pool), lengths

    def _ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, lengths = self.model.tokenizer.tokenize(list(texts), self.context_length)
        return ids.to(self.device), lengths.to(self.device)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return self.model.tokenizer.token_counts(list(texts))


# ---- precision: the towers run under autocast, and tokens are held in as many bits ----------------------------


def dtype_of(precision: str, device: str) -> torch.dtype:
    """Return the dtype of ``precision=`` on a device.

    precision: "fp32", "bf16", "fp16" or "auto": :func:`filip.common.device.evaluation_precision`.
    Raises UserError for another word.
    """
    if precision == "auto":
        precision = evaluation_precision(torch.device(device))
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision}: should be auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def name_of(dtype: torch.dtype) -> str:
    """Return the inverse of :func:`dtype_of`: "fp32", "bf16" or "fp16"."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def autocast(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which the towers run; an empty one in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype)
