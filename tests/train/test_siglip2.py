"""SigLIP 2 with both towers: its tokens are ours, it trains, and everything that it leaves carries its vocabulary."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

import filip
from filip.data.loading.config import DataConfig, Source, StreamConfig
from filip.data.loading.loader import build_loader
from filip.errors import UserError
from filip.eval.encoders import FilipEncoder
from filip.export.formats import FORMATS
from filip.json_tokenizer import JsonTokenizer
from filip.models import build_model, config_from_dict, load_model, load_preset, save_model
from filip.runs.source import ModelSource, read_source
from filip.train.warm_start import content_hash, load_initial
from tests.support.clips import siglip2_folder, siglip_folder
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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("siglip2") / "tiny"
    siglip2_folder(path, CAPTIONS)
    return path


@pytest.mark.parametrize("naflex", [False, True])
def test_ids_and_every_token_of_its_texts_are_ours(naflex: bool, tmp_path: Path) -> None:
    theirs = siglip2_folder(tmp_path / "model", CAPTIONS, naflex)
    ours = load_initial(f"hf:{tmp_path / 'model'}", load_preset("tiny")).eval()
    length = ours.config.text.context_length
    expected = AutoTokenizer.from_pretrained(tmp_path / "model")(
        TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    ids, lengths = ours.tokenizer.tokenize(TEXTS, length)
    assert lengths.tolist() == expected["attention_mask"].sum(1).tolist()
    assert lengths.max() == length and ids[3, -1] == 1  # a text that is cut ends in [EOS]
    seen = torch.arange(length) < lengths[:, None]
    assert torch.equal(ids[seen], expected["input_ids"][seen])
    ours.text.projection = torch.nn.Identity()
    with torch.no_grad():
        states = theirs.text_model(expected["input_ids"]).last_hidden_state
        torch.testing.assert_close(ours.text(ids, lengths), states[seen], atol=2e-5, rtol=1e-4)
        # however far the batch is padded, and alone
        torch.testing.assert_close(ours.text(*ours.tokenizer.tokenize(TEXTS[:1], length)), states[0][seen[0]])
        last = states[torch.arange(4), lengths - 1]
        torch.testing.assert_close(ours.text(ids, lengths, only_last=True), last, atol=2e-5, rtol=1e-4)


def test_what_cannot_be_taken_is_refused_and_the_image_tower_alone_is_not(folder: Path, tmp_path: Path) -> None:
    siglip_folder(tmp_path / "without")
    with pytest.raises(UserError, match=r"tokenizer of its text tower cannot be loaded.*without:image takes"):
        load_initial(f"hf:{tmp_path / 'without'}", load_preset("tiny"))
    left = tmp_path / "left"
    shutil.copytree(folder, left)
    AutoTokenizer.from_pretrained(folder, padding_side="left").save_pretrained(left)
    with pytest.raises(UserError, match="pads its texts on the left"):
        load_initial(f"hf:{left}", load_preset("tiny"))
    alone = load_initial(f"hf:{left}:image", load_preset("tiny"))
    assert alone.config.text == load_preset("tiny").text
    # another tokenizer.json is another model
    assert content_hash(f"hf:{folder}") != content_hash(f"hf:{left}")
    assert content_hash(f"hf:{folder}:image") == content_hash(f"hf:{left}:image")
    with pytest.raises(UserError, match="leaves out the first and the last token"):
        load_initial(f"hf:{folder}", config_from_dict({"exclude_special_tokens": True}))
    (tmp_path / "no.json").write_text('{"not": "a tokenizer"}')
    for path, reason in ((tmp_path / "no.json", "is not a tokenizer.json"), (tmp_path / "gone", "cannot read")):
        with pytest.raises(UserError, match=reason):
            JsonTokenizer.from_file(path)


def test_a_saved_model_carries_its_vocabulary_where_it_can(folder: Path, tmp_path: Path) -> None:
    source = siglip2_folder(tmp_path / "source", CAPTIONS)
    model = load_initial(f"hf:{tmp_path / 'source'}", load_preset("tiny")).eval()
    with torch.no_grad():  # else its rows are alike, and to=compact takes them for untaught
        model.text.token_embedding.weight *= torch.rand(model.config.text.vocab_size, 1) + 0.5
    save_model(tmp_path / "a.safetensors", model)
    FORMATS["compact"].write(ModelSource(model, "a"), str(tmp_path / "b.safetensors"))
    shutil.rmtree(tmp_path / "source")
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
    for to in ("hf", "mv", "onnx", "open_clip"):
        with pytest.raises(UserError, match=r"(?s)CLIP's text tower.*to=safetensors|is token-wise"):
            FORMATS[to].write(ModelSource(model, "a"), str(tmp_path / to))
    assert source.config.text_config.vocab_size == model.config.text.vocab_size


def test_it_trains_resumes_and_is_loaded_with_its_own_vocabulary(squares: Path, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def started_from(place: Path) -> list[str]:
        few = ("max_steps=4", "optimizer.warmup_steps=1", "checkpoint.every_steps=2")
        return train_arguments(squares, run, f"init_from=hf:{place}", *few)

    assert run_many(2, [started_from(folder)], tmp_path / "log.txt") == [0]
    assert len(losses(run)) == 4 and all(map(math.isfinite, losses(run)))
    (run / "model.safetensors").rename(tmp_path / "first.safetensors")
    shutil.rmtree(run / "finished")
    for name in ("finished.json", "model.json"):
        (run / name).unlink()
    shutil.copytree(folder, tmp_path / "moved")  # weights and vocabulary are known by content
    assert run_many(2, [started_from(tmp_path / "moved")], tmp_path / "again.txt") == [0]
    assert "at step 2" in (tmp_path / "again.txt").read_text()
    assert same_weights(tmp_path / "first.safetensors", run / "model.safetensors")
    theirs = AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
    for model in (load_model(run / "model.safetensors"), read_source(str(run / "checkpoints/step00000002")).model):
        ids, lengths = model.tokenizer.tokenize(TEXTS, 1000)
        assert [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)] == theirs
    shown = filip.load(str(run / "model.safetensors"))
    picture = Image.new("RGB", (40, 30), "red")
    assert shown.similarity([picture], ["a red square", "the Blue ball"]).i2t.shape == (1, 2)


def test_a_tower_from_random_weights_takes_a_tokenizer_json(squares: Path, folder: Path, tmp_path: Path) -> None:
    tokenizer = JsonTokenizer.from_file(folder / "tokenizer.json")
    text = f"model.text.tokenizer={folder / 'tokenizer.json'}"
    small = compose("model=tiny", text, "model.text.vocab_size=9")
    with pytest.raises(UserError, match=f"give model.text.vocab_size={tokenizer.size}"):
        _ = build_model(small.model).tokenizer
    config = compose("model=tiny", text, f"model.text.vocab_size={tokenizer.size}")
    config.model.text.padding = 0
    model = build_model(config.model)
    _ = model.tokenizer
    stream = StreamConfig(
        DataConfig(sources=[Source(f"{squares}/shards", f"{squares}/captions")], workers=2),
        batch_size=4, image_size=32, context_length=32, json_tokenizer=model.json_tokenizer,
    )  # fmt: skip
    batch = next(iter(build_loader(stream)))
    assert batch["ids"].max() < tokenizer.size and (batch["ids"].gather(1, batch["lengths"][:, None] - 1) == 1).all()
