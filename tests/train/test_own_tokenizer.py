"""A text tower with its own vocabulary, a tokenizer.json: it trains, and everything that it leaves carries it."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

import filip
from filip.common.errors import UserError
from filip.eval.encoders import FilipEncoder
from filip.export.formats import FORMATS
from filip.models import DualEncoder, build_model, load_model, save_model
from filip.runs.source import ModelSource, read_source
from tests.support.clips import unigram_tokenizer
from tests.support.training import compose, losses, run_many, same_weights, train_arguments

CAPTIONS = [
    f"{size} {colour} {thing} {place}"
    for size in ("a small", "One Large", "the")
    for colour in ("red", "green", "blue", "yellow")
    for thing in ("square", "circle", "Ball", "house of cards")
    for place in ("on grass", "in the corner", "behind a tree!")
]
TEXTS = ["A small RED square on grass", "", "x", "the house of cards behind a tree! " * 9]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    unigram_tokenizer(CAPTIONS).save(str(file))
    return file


def built(vocabulary: Path, padding: int | None = None) -> DualEncoder:
    config = compose("model=tiny", f"model.text.tokenizer={vocabulary}")
    config.model.text.padding = padding
    torch.manual_seed(0)
    return build_model(config.model).eval()


def test_a_tower_that_reads_its_padding_does_so_however_far_the_batch_is_padded(vocabulary: Path) -> None:
    model = built(vocabulary, padding=0)
    ids, lengths = model.tokenizer.tokenize(TEXTS, model.config.text.context_length)
    assert lengths.max() == model.config.text.context_length and ids[3, -1] == 1  # a text that is cut ends in [EOS]
    with torch.no_grad():
        together = model.text(ids, lengths)
        torch.testing.assert_close(model.text(ids[:1, : lengths[0]], lengths[:1]), together[: lengths[0]])
        ends = lengths.cumsum(0) - 1
        torch.testing.assert_close(model.text(ids, lengths, only_last=True), together[ends])


def test_a_saved_model_carries_its_vocabulary_where_it_can(vocabulary: Path, tmp_path: Path) -> None:
    place = tmp_path / "tokenizer.json"
    shutil.copy(vocabulary, place)
    model = built(place)
    with torch.no_grad():  # else its rows are alike, and to=compact takes them for untaught
        model.text.token_embedding.weight *= torch.rand(model.config.text.vocab_size, 1) + 0.5
    save_model(tmp_path / "a.safetensors", model)
    FORMATS["compact"].write(ModelSource(model, "a"), str(tmp_path / "b.safetensors"))
    place.unlink()
    ids, lengths = model.tokenizer.tokenize(TEXTS, 24)
    for name, tolerance in (("a", 0.0), ("b", 2e-3)):
        again = load_model(tmp_path / f"{name}.safetensors")
        assert again.tokenizer.tokenize(TEXTS, 24)[0].equal(ids)
        with torch.no_grad():
            a, b = again.encode_text(ids, lengths), model.encode_text(ids, lengths)
            torch.testing.assert_close(a.tokens, b.tokens, atol=tolerance, rtol=0)
    encoder = FilipEncoder(load_model(tmp_path / "a.safetensors"), "a")
    assert encoder.tokens("the red Square")[-1] == "[EOS]"
    assert "".join(encoder.tokens("the red Square")[:-1]) == "theredsquare"
    assert encoder.token_counts(TEXTS)[1] == 1 and encoder.token_counts(TEXTS)[3] > 24
    for to in ("hf", "mv", "onnx"):
        with pytest.raises(UserError, match=r"(?s)CLIP's text tower.*to=safetensors|is token-wise"):
            FORMATS[to].write(ModelSource(model, "a"), str(tmp_path / to))


@pytest.mark.slow
def test_it_trains_resumes_and_is_loaded_with_its_own_vocabulary(
    squares: Path, vocabulary: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    few = ("max_steps=4", "optimizer.warmup_steps=1", "checkpoint.every_steps=2")
    start = train_arguments(squares, run, f"model.text.tokenizer={vocabulary}", *few)
    assert run_many(2, [start], tmp_path / "log.txt") == [0]
    assert len(losses(run)) == 4 and all(map(math.isfinite, losses(run)))
    (run / "model.safetensors").rename(tmp_path / "first.safetensors")
    shutil.rmtree(run / "finished")
    for name in ("finished.json", "model.json"):
        (run / name).unlink()
    assert run_many(2, [start], tmp_path / "again.txt") == [0]
    assert "at step 2" in (tmp_path / "again.txt").read_text()
    assert same_weights(tmp_path / "first.safetensors", run / "model.safetensors")
    theirs = [result.ids or [0] for result in Tokenizer.from_file(str(vocabulary)).encode_batch(TEXTS)]
    for model in (load_model(run / "model.safetensors"), read_source(str(run / "checkpoints/step00000002")).model):
        ids, lengths = model.tokenizer.tokenize(TEXTS, 1000)
        assert [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)] == theirs
    shown = filip.load(str(run / "model.safetensors"))
    picture = Image.new("RGB", (40, 30), "red")
    assert shown.similarity([picture], ["a red square", "the Blue ball"]).i2t.shape == (1, 2)
