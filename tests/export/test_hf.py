"""An exported folder gives our embeddings in transformers, in a process that cannot import this project."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import filip
from filip.eval.encoders import load_encoder
from filip.export.__main__ import Export, export
from filip.export.hf_folder import clip_tokenizer
from filip.export.standalone.filip_inputs import clean, to_pixels
from filip.images.eval_transform import EvalTransform
from filip.models import ModelConfig, load_model
from filip.resources import weights
from filip.text.tokenizer import tokenize
from filip.train.warm_start import check_init_from, load_initial
from tests.eval.miniature import write_model
from tests.export.conftest import run_without_us, write_inputs
from tests.support.captions import UNTIDY_CAPTIONS
from tests.support.squares import square

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
for folder in {folders!r}:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    images = [Image.open(f"{here}/{{i}}.png") for i in range({images})]
    inputs = processor(images=images, text=json.load(open("{here}/captions.json")))
    with torch.no_grad():
        found = model(**inputs)
    torch.save({{**found, "mask": inputs["attention_mask"], "class": type(model).__module__}}, folder + "/found.pt")

# What people do with a model of transformers, on the last folder.
import numpy as np
from transformers import pipeline
texts = ["a red square", "a blue square"]
shown = [image.convert("RGB") for image in images[:2]]
inputs = processor(images=shown, text=texts)
found = model(**inputs, return_loss=True)
pairs = torch.arange(2)
cross = torch.nn.functional.cross_entropy
assert torch.allclose(found.loss, (cross(found.logits_per_image, pairs) + cross(found.logits_per_text, pairs)) / 2)
found.loss.backward()
alone = model(pixel_values=inputs["pixel_values"])
assert alone.logits_per_image is None and torch.equal(alone.image_embeds, found.image_embeds)
padded = processor(text=["a red square", "red"])
without = model.get_text_features(padded["input_ids"])
assert torch.equal(without, model.get_text_features(padded["input_ids"], padded["attention_mask"]))
half = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
assert torch.allclose(half(**inputs).image_embeds.float(), found.image_embeds, atol=0.05)
for given in (np.asarray(shown[0]), torch.from_numpy(np.asarray(shown[0])).movedim(-1, 0)):
    assert torch.equal(processor(images=given)["pixel_values"], inputs["pixel_values"][:1])
assert processor(images=shown, size={{"height": 64, "width": 64}})["pixel_values"].shape == (2, 3, 64, 64)
assert processor(text=texts, padding="max_length", max_length=20)["input_ids"].shape == (2, 20)
for prepare in (processor, processor.image_processor):
    try:
        prepare(images=shown, do_center_crop=False)
        raise SystemExit("an argument was ignored")
    except ValueError as error:
        assert "do_center_crop" in str(error)
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
found = classify(shown[0], candidate_labels=texts, hypothesis_template="{{}}")
scores = {{one["label"]: one["score"] for one in found}}
expected = model(**inputs).logits_per_image[0].softmax(0)
assert torch.allclose(torch.tensor([scores[text] for text in texts]), expected, atol=1e-5), (scores, expected)
"""

TRAINING = """
import json
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments
model = AutoModel.from_pretrained("out", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("out", trust_remote_code=True)
texts = json.load(open("texts.json"))
def collate(numbers):
    images = [Image.open(f"{n}.png") for n in numbers]
    return {**processor(images=images, text=[texts[n] for n in numbers], padding="max_length"), "return_loss": True}
def r1(mode):
    with torch.no_grad():
        found = model.train(mode)(**collate(range(len(texts))))
    return float(found.loss), float((found.logits_per_image.argmax(1) == torch.arange(len(texts))).float().mean())
frozen = {name: value.clone() for name, value in model.state_dict().items() if "backbone" in name}
before = r1(False)
assert abs(before[0] - r1(True)[0]) < 1e-6
assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())
assert sum("running_mean" in name for name in frozen) > 3
gradients = []
for _ in range(2):
    model.zero_grad()
    model(**collate(range(8))).loss.backward()
    gradients.append({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})
    model.gradient_checkpointing_enable()
assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[1])
settings = dict(max_steps=100, per_device_train_batch_size=32, learning_rate=3e-3, report_to=[], use_cpu=True)
arguments = TrainingArguments("trainer", remove_unused_columns=False, **settings)
Trainer(model, arguments, collate, range(len(texts))).train()
after = r1(False)
assert abs(after[0] - r1(True)[0]) < 1e-6 and after[1] > before[1] + 0.15, (before, after)
model.save_pretrained("trained")
torch.save(model(**collate(range(4))).text_embeds, "texts.pt")
"""


def test_embeddings_of_zeros_are_left_out(saved: Callable[..., str], tmp_path: Path) -> None:
    file = saved(zeros=47_408)
    ours, whole = filip.load(file, device="cpu"), Path(file).stat().st_size
    expected = ours.encode_texts(UNTIDY_CAPTIONS)
    for to, graph in {"hf": "model.safetensors", "mv": "model.safetensors", "onnx": "onnx/text_model.onnx"}.items():
        export(Export(model=file, out=str(tmp_path / to), to=to))
        assert (tmp_path / to / graph).stat().st_size < whole / 5
        if to == "mv":  # test_onnx.py compares the graphs
            found, lengths = load_encoder(f"{to}:{tmp_path / to}", trust_remote_code=True).encode_texts(UNTIDY_CAPTIONS)
            assert torch.equal(lengths, expected.lengths)
            torch.testing.assert_close(found, expected.values, atol=1e-4, rtol=0)
    again = load_model(tmp_path / "hf" / "model.safetensors").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in load_model(file).state_dict().items())


@pytest.mark.slow
def test_an_export_is_trained_by_transformers_and_comes_back(saved: Callable[..., str], tmp_path: Path) -> None:
    def change(config: ModelConfig) -> None:
        config.image.stem, config.image.stem_stride = "test_efficientnet", 8

    export(Export(model=saved(change), out=str(tmp_path / "out"), to="hf"))
    pairs = [square(n) for n in range(0, 224, 3)]
    for n, (image, _) in enumerate(pairs):
        (tmp_path / f"{n}.png").write_bytes(image)
    (tmp_path / "texts.json").write_text(json.dumps([text for _, text in pairs]))
    run_without_us(TRAINING, tmp_path)
    check_init_from(start := str(tmp_path / "trained" / "model.safetensors"))
    theirs, model = torch.load(tmp_path / "texts.pt"), load_initial(start, ModelConfig())
    ours = filip.load(start, device="cpu").encode_texts([text for _, text in pairs[:4]])
    torch.testing.assert_close(ours.values, theirs[theirs.norm(dim=2) > 0], atol=1e-6, rtol=0)
    assert model.config.image.stem == "test_efficientnet"


@pytest.mark.slow
def test_transformers_gives_our_vectors(saved: Callable[..., str], tmp_path: Path, pictures: list[Image.Image]) -> None:
    def kind(
        interaction: str, cls: bool, stem: str | None = None, pooling: str = "ends"
    ) -> Callable[[ModelConfig], None]:
        def change(config: ModelConfig) -> None:
            config.interaction, config.cls_in_interaction, config.pooling = interaction, cls, pooling
            config.image.activation, config.image.stem = "quick_gelu", stem
            config.image.stem_cells = 2 if stem else 1

        return change

    kinds: dict[str, tuple[Any, ...]] = {
        "tokens": ("token_wise", False, None),
        "with_cls": ("token_wise", True, None),
        "pooled": ("pooled", False, None),
        "stem": ("token_wise", False, "tf_efficientnet_lite0"),
        "mean": ("pooled", False, None, "mean"),
        "attention": ("pooled", False, None, "attention"),
        "heads": ("pooled", False, None, "heads"),
        "relu": ("pooled", False, None, "relu"),
        "bilinear": ("pooled", False, None, "bilinear"),
    }
    for name, arguments in kinds.items():
        file = Path(saved(kind(*arguments))).rename(tmp_path / f"{name}.safetensors")
        export(Export(model=str(file), out=str(tmp_path / name), to="hf"))
    write_inputs(tmp_path, pictures)
    folders = [str(tmp_path / name) for name in kinds]
    program = PROGRAM.format(folders=folders, here=str(tmp_path), images=len(pictures))
    run_without_us(program, tmp_path)

    for name in kinds:
        result, file = torch.load(tmp_path / name / "found.pt"), tmp_path / f"{name}.safetensors"
        assert result["class"].startswith("transformers_modules")
        model = filip.load(file, device="cpu")
        image, text = model.encode_images(pictures), model.encode_texts(UNTIDY_CAPTIONS)
        torch.testing.assert_close(result["image_embeds"], image, atol=3e-6, rtol=0)  # a stem is folded here
        theirs = result["text_embeds"]
        theirs = theirs if text.lengths is None else theirs[result["mask"].bool()]
        torch.testing.assert_close(theirs, text.values, atol=1e-6, rtol=0)
        expected, scale = model.similarity(image, text), load_model(file).scale().detach()
        torch.testing.assert_close(result["logits_per_image"] / scale, expected.i2t, atol=1e-6, rtol=0)
        torch.testing.assert_close(result["logits_per_text"].T / scale, expected.t2i, atol=1e-6, rtol=0)


def test_the_tokenizer_has_our_ids(saved: Callable[..., str]) -> None:
    with gzip.open(ROOT / "tests" / "data" / "short_captions.tsv.gz", "rt", encoding="utf-8") as file:
        captions = [line.rstrip("\n").split("\t")[-1] for line in file][:3000] + UNTIDY_CAPTIONS
    tokenizer = clip_tokenizer(load_model(saved()))
    result = tokenizer([clean(caption) for caption in captions], truncation=True)["input_ids"]
    ids, lengths = tokenize(captions, 32)
    for caption, theirs, ours, length in zip(captions, result, ids.tolist(), lengths.tolist(), strict=True):
        assert theirs == ours[:length], caption


def test_the_processors_pixels_are_those_of_the_evaluation(pictures: list[Image.Image]) -> None:
    deep = Image.fromarray((np.arange(50 * 40).reshape(50, 40) * 30).astype(np.uint16))
    for image in [*pictures, pictures[0].convert("P"), pictures[3].convert("LA"), deep]:
        np.testing.assert_allclose(
            to_pixels(image, 32), EvalTransform(32)(image).numpy(), atol=1e-6, err_msg=image.mode
        )
    with pytest.raises(ValueError, match="60000 x 1 pixels: too long and narrow"):
        to_pixels(Image.new("L", (60_000, 1)), 32)


def card_with(folder: Path, *parts: str) -> str:
    """Return the card of an exported folder, which has these parts."""
    card = (folder / "README.md").read_text()
    assert [part for part in parts if part not in card] == []
    return card


def test_the_card_tells_of_the_training_beside_the_weights(saved: Callable[..., str], tmp_path: Path) -> None:
    file = Path(saved())
    config = {
        "run": "squares",
        "optimizer": {"name": "adamw", "base_lr": 0.5},
        "loss": {"token_wise": 1.0, "pooled": 0.0, "exchanged_nouns": 0.5, "of another package": 1.0},
        "data": {"sources": [{"shards": "results/cc3m/shards", "weight": 2.0}]},
    }
    result = {"run": "squares", "config": config, "steps": 12, "pairs": 3456, "epochs": 1.5, "commit": "abc"}
    file.with_suffix(".json").write_text(json.dumps(result))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "zero_shot.md").write_text("| model | CIFAR-10 |\n")
    (tmp_path / "corpus").mkdir()
    works = {"a": {"license": "MIT"}, "b": {"license": "CC-BY-SA-4.0"}}
    (tmp_path / "corpus" / "attribution.json").write_text(json.dumps(works))
    export(Export(model=str(file), out=str(tmp_path / "out"), to="hf"))
    card = card_with(
        tmp_path / "out", "license: cc-by-sa-4.0\n", "# squares", "cc3m, weight 2.0", "3,456 pairs",
        "| `optimizer.base_lr` | 0.5 |", "commit abc", "| CIFAR-10 |", "arXiv 2111.07783", "arXiv 2210.01936",
    )  # fmt: skip
    assert "arXiv 2103.00020" not in card  # CLIP's loss had no weight


def test_what_started_from_a_licensed_model_carries_its_licence_and_attribution(tmp_path: Path) -> None:
    """Through a second training, too, and where the first was given by its file."""
    for name, start in (("first", weights("emoji")), ("second", str(tmp_path / "first.safetensors"))):
        write_model(tmp_path / f"{name}.safetensors", "token_wise")
        config = {"init_from": start, "data": {"sources": [{"shards": "shards"}]}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"run": "run", "config": config}))
    export(Export(model=str(tmp_path / "second.safetensors"), out=str(tmp_path / "out"), to="hf"))
    start = "changed ones of `first`, which started from `emoji` under cc-by-sa-4.0"
    licence = ("license: cc-by-sa-4.0\n---", "`emoji_attribution.json`")
    card_with(tmp_path / "out", "# second\n", "- shards, weight 1.0\n", start, *licence)
    assert (tmp_path / "out" / "emoji_attribution.json").is_file()
