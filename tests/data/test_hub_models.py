"""OPUS-MT models as the hub has them: converted on first use, and run."""

import json
from pathlib import Path

import pytest

from filip.data.engines import load_engine


def write_model(folder: Path) -> None:
    """Write a random Marian model as transformers does."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    from tests.data.tiny_marian import WORDS, _vocabulary

    folder.mkdir(parents=True)
    words = sorted({*WORDS, *WORDS.values()})
    vocabulary = _vocabulary(folder, "source", words)
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    (folder / "source.yml").unlink()
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "<pad>": len(vocabulary)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    pad = len(vocabulary)
    layers = {f"{side}_{name}": value for side in ("encoder", "decoder")
              for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))}  # fmt: skip
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=pad + 1, d_model=32, **layers, pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad,
        forced_eos_token_id=0, max_position_embeddings=64, max_length=16, num_beams=1, bad_words_ids=[[pad]],
        activation_function="swish", static_position_embeddings=True, scale_embedding=True, init_std=0.3,
    )  # fmt: skip
    MarianMTModel(config).save_pretrained(folder)


@pytest.mark.slow
def test_a_model_of_the_hub_is_converted_and_translates_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filip.data.engines.marian.QUANTIZATION", "float32")
    monkeypatch.setattr("filip.data.engines.marian.BEAM", 1)
    monkeypatch.setattr("filip.data.engines.marian.MAX_LENGTH", 14)  # the 16 below include start and end
    for direction in ("en-de", "de-en"):
        write_model(tmp_path / direction)

    from transformers import MarianMTModel, MarianTokenizer

    texts = ["the big dog likes the cat", "red house", "a tree"]
    found = load_engine("marian", "de", str(tmp_path)).to_pivot(texts)
    tokenizer = MarianTokenizer.from_pretrained(tmp_path / "en-de")
    model = MarianMTModel.from_pretrained(tmp_path / "en-de").eval()
    for text, translation in zip(texts, found, strict=True):
        ids = model.generate(**tokenizer(text, return_tensors="pt"), num_beams=1, do_sample=False, max_length=16)
        assert translation == tokenizer.decode(ids[0], skip_special_tokens=True).strip()
