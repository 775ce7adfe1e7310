"""Captions that an engine makes of the images become candidates next to the translations, and are drawn by a weight."""

from __future__ import annotations

import importlib.metadata
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from filip.data.captions import recaptions
from filip.data.cards import SourceCard
from filip.data.engines import load_captioner
from filip.data.loading.pair_index import ShardCaptions
from filip.data.sidecar import read_sidecar
from filip.data.translate import TranslationJob, translate
from filip.errors import UserError
from tests.data.pair_shards import colour, write_pairs

COUNT = 5


class ByColour:
    """A captioner that names the red of an image, and repeats itself, or the caption, where it is told to."""

    model = "by colour 1"

    def __init__(self, models: str | None) -> None:
        assert models == "weights"

    @staticmethod
    def missing(models: str | None) -> str | None:
        return None if models else "give recaption_models"

    def captions(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[str]:
        made = []
        for image, text in zip(images, texts, strict=True):
            red = image.getpixel((10, 10))[0]
            special = {0: "", 1: text.upper(), 2: "a red red red thing"}
            made.append(special.get(int(text.split()[1]), f"a picture with {red} of red in the middle"))
        return made


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TranslationJob:
    """Offer the captioner as an installed package does, and write shards of pairs whose captions name their number."""
    module = ModuleType("a_captioner")
    module.ByColour = ByColour  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_captioner", module)
    entry = importlib.metadata.EntryPoint("by-colour", "a_captioner:ByColour", "filip.captioners")
    monkeypatch.setattr("filip.plugins.entry_points", lambda group: [entry] if group == entry.group else [])
    write_pairs(tmp_path, [3, 2], captions=1)
    for shard in (0, 1):
        sidecar = pq.read_table(tmp_path / f"captions/{shard:05d}.parquet")
        texts = sidecar["captions"].to_pylist()
        table = sidecar.select(["key"]).append_column("caption", [[text[0] for text in texts]])
        for name, value in (("status", "success"), ("sha256", None)):
            table = table.append_column(name, [[value and value] * len(texts)])
        pq.write_table(table, tmp_path / f"shards/{shard:05d}.parquet")
    return TranslationJob(
        card=SourceCard("c"),
        shards=tmp_path / "shards",
        out=tmp_path / "out",
        engine="none",
        pivots=[],
        models=None,
        cache=tmp_path / "cache",
        recaption="by-colour",
        recaption_models="weights",
        processes=1,
    )


def test_an_engine_of_another_package_captions_images_and_what_repeats_is_counted(job: TranslationJob) -> None:
    assert translate(job, part=(1, 2)) is None
    (half,) = job.cache.glob("by-colour-image-*/*.parquet")
    assert half.name.startswith("00001-"), "a part captions its shards"
    before = half.stat().st_mtime_ns
    fragment = translate(job)
    assert fragment is not None and half.stat().st_mtime_ns == before
    assert (fragment.n_in, fragment.n_out) == (COUNT, 2)
    assert dict(fragment.dropped) == {"empty": 1, "identical": 1, "repetitive": 1}
    rows = [row for path in sorted(job.out.glob("*.parquet")) for row in read_sidecar(path)]
    for number, row in enumerate(rows):
        assert row["captions"][0].split()[1] == str(number)
        assert row["origins"] == ["original", *(["by-colour:image"] if number > 2 else [])]
        if number > 2:
            red = int(row["captions"][1].split()[3])
            assert abs(red - colour(number)[0]) <= 6, "the caption is that of this image"
    shown = fragment.notes["samples"]["identical"][0]
    assert (shown["caption"].upper(), shown["key"]) == (shown["back"], rows[1]["key"])
    with pytest.raises(UserError, match="recaption is 'nobody', but the engines that see images are image-to-text, by"):
        translate(replace(job, recaption="nobody"))


def test_a_killed_run_captions_no_shard_twice(job: TranslationJob, monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[str] = Counter()
    made = recaptions.caption_shard

    def killed(tar: Path, file: Path) -> int:
        done[tar.stem] += 1
        if tar.stem == "00001" and done["00001"] == 1:
            raise KeyboardInterrupt
        return made(tar, file)

    def here(function: Any, todo: Any, *_: Any, start: Any, start_arguments: Any, **__: Any) -> None:
        start(*start_arguments)
        for one in todo:
            killed(*one)

    monkeypatch.setattr(recaptions, "run_blocks", here)
    with pytest.raises(KeyboardInterrupt):
        translate(job)
    assert translate(job) is not None and done == {"00000": 1, "00001": 2}


@pytest.mark.parametrize(
    ("weight", "translated", "shares"),
    [
        (1.0, True, [0.25, 0.25, 0.25, 0.25]),
        (2.0, True, [1 / 6, 1 / 6, 1 / 3, 1 / 3]),
        (0.0, True, [0.5, 0.5, 0, 0]),
        (0.5, False, [0.5, 0, 0.25, 0.25]),
    ],
)
def test_captions_of_images_are_drawn_by_their_weight(
    tmp_path: Path, weight: float, translated: bool, shares: list[float]
) -> None:
    from filip.data.sidecar import write_sidecar

    origins = ["original", "marian:de", "x:image", "y:image"]
    write_sidecar(tmp_path / "a.parquet", [{"key": "k", "captions": list("abcd"), "origins": origins, "group": 1}])
    captions = ShardCaptions.from_sidecar(tmp_path / "a.parquet")
    drawn = Counter(captions.text(0, draw / 1200, translated, weight) for draw in range(1200))
    assert [drawn[text] / 1200 for text in "abcd"] == [pytest.approx(share, abs=0.002) for share in shares]


@pytest.mark.slow
def test_a_model_of_transformers_captions_as_it_does_itself(tmp_path: Path) -> None:
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *"abcdefghijklmnop"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ids = {"bos_token_id": 5, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    text = small | ids | {"vocab_size": len(words), "encoder_hidden_size": 16}
    config = BlipConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16})
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config).eval()
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "blip")
    images = [Image.new("RGB", (40, 30), shade) for shade in ("red", "blue", "white")]
    engine = load_captioner("image-to-text", str(tmp_path / "blip"))
    made = engine.captions(images, ["", "", ""])
    alone = [
        processor.decode(
            model.generate(**processor(images=image, return_tensors="pt"), max_new_tokens=40, do_sample=False)[0],
            skip_special_tokens=True,
        )
        for image in images
    ]
    assert made == alone and any(made)
    with pytest.raises(UserError, match=r"recaption_models=.*nowhere cannot be loaded"):
        load_captioner("image-to-text", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="needs recaption_models"):
        load_captioner("image-to-text", None)
