"""Marian / OPUS-MT models through CTranslate2, the paper's kind of engine: German, Russian, and fifty others.

``models`` names a folder with one folder per direction, ``en-de`` and ``de-en`` for the pivot ``de``. Each has
model.bin, source.spm and target.spm, as the command ``ct2-transformers-converter`` of CTranslate2 leaves them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filip.cli.extras import how_to_install
from filip.common.errors import UserError
from filip.common.files import sha256_of

BEAM = 2
MAX_BATCH_TOKENS = 2048  # source tokens in one batch: the blocks are sorted by length, so little is padding
MAX_LENGTH = 128  # tokens; captions are short, and a loop should end
FILES = ("model.bin", "source.spm", "target.spm")
HELP = (
    "`ct2-transformers-converter --model Helsinki-NLP/opus-mt-en-{pivot} --copy_files source.spm target.spm "
    "--quantization int8 --output_dir FOLDER/en-{pivot}`, and the same for {pivot}-en, fetch and convert OPUS-MT models"
)


class Marian:
    """Engine for a round trip through one pivot language; 100 to 300 captions per second and core, a GPU thousands."""

    def __init__(self, pivot: str, models: str | None) -> None:
        if absent := self.missing(pivot, models):
            raise UserError(absent)
        assert models is not None
        self._there = _Direction(models, "en", pivot)
        self._back = _Direction(models, pivot, "en")
        self.model = f"{self._there.identity}+{self._back.identity}+beam{BEAM}"

    @staticmethod
    def missing(pivot: str, models: str | None) -> str | None:
        packages = [name for name in ("ctranslate2", "sentencepiece") if find_spec(name) is None]
        if packages:
            return f"the engine marian needs {' and '.join(packages)}: {how_to_install('marian')}"
        help = HELP.format(pivot=pivot)
        if not models:
            return f"the engine marian needs its weights: set models=FOLDER. {help}"
        folders = [Path(models, f"en-{pivot}"), Path(models, f"{pivot}-en")]
        absent = [str(folder) for folder in folders if not all((folder / name).exists() for name in FILES)]
        return f"no folder {' and none '.join(absent)} with {', '.join(FILES)}. {help}" if absent else None

    def to_pivot(self, texts: Sequence[str]) -> list[str]:
        return self._there.translate(texts)

    def to_english(self, texts: Sequence[str]) -> list[str]:
        return self._back.translate(texts)


class _Direction:
    def __init__(self, models: str, source: str, target: str) -> None:
        import ctranslate2
        import sentencepiece

        folder = Path(models) / f"{source}-{target}"
        self._source, self._target = (
            sentencepiece.SentencePieceProcessor(model_file=str(folder / name)) for name in FILES[1:]
        )
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        self._model: Any = ctranslate2.Translator(
            str(folder), device=device, compute_type="default", inter_threads=1, intra_threads=1
        )
        # Marian was trained on sentences that end in </s>; a model in the hub's format does not add it.
        settings = folder / "config.json"  # CTranslate2's, not transformers'
        ends = not settings.exists() or json.loads(settings.read_text()).get("add_source_eos")
        self._end = [] if ends else ["</s>"]
        self.identity = f"{source}-{target}:{sha256_of(folder / 'model.bin')[:16]}"

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Return one translation per text; an empty text stays empty."""
        filled = [i for i, text in enumerate(texts) if text.strip()]
        encoded = self._source.encode([texts[i] for i in filled], out_type=str)
        pieces = [sentence + self._end for sentence in encoded]
        results = self._model.translate_batch(
            pieces,
            beam_size=BEAM,
            max_batch_size=MAX_BATCH_TOKENS,
            batch_type="tokens",
            max_decoding_length=MAX_LENGTH,
            max_input_length=MAX_LENGTH,
        )
        out = [""] * len(texts)
        for i, result in zip(filled, results, strict=True):
            out[i] = str(self._target.decode(result.hypotheses[0])).strip()
        return out
