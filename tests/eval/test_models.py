"""Models of every kind through one interface: equal weights give equal tables, and a wrong name one sentence."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import normalize
from transformers import CLIPModel

from filip.common.errors import UserError
from filip.common.files import write_json
from filip.eval.encoders import load_encoder
from filip.eval.scorer import load_scorer
from filip.export.hf_folder import clip_tokenizer, write_multi_vector
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.models import DualEncoder, ModelConfig, build_model, load_model, save_model
from filip.runs.saved_files import STATE, LoopState
from filip.runs.source import read_source
from filip.text.tokenizer import tokenize
from filip.train.warm_start import load_initial
from tests.eval.miniature import SIDE, picture, run_protocol, tiny_config, write_model, write_webdataset
from tests.support.clips import hf_folder, open_clip_file
from tests.support.late_interaction_models import KINDS, write_late_interaction_model

TEXTS = ["a photo of a cat.", "two dogs", "a rather longer caption, with a comma"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the names of one CLIP that open_clip trained, its own folder and our file, and of one of transformers."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "trained").mkdir()
    trained = open_clip_file(folder / "trained", steps=3)
    ours = str(folder / "ours.safetensors")
    model = load_initial(f"open_clip:{trained}:gelu", ModelConfig(interaction="pooled"))
    save_model(ours, model)
    theirs, weights = (folder / "theirs"), Path(trained.partition(":")[2])
    theirs.mkdir()
    architecture = json.loads(next(weights.parent.glob("*.json")).read_text())
    normalised = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(theirs / "open_clip_config.json", {"model_cfg": architecture, "preprocess_cfg": normalised})
    save_file(torch.load(weights), theirs / "open_clip_model.safetensors")
    hf_folder(folder / "hf")
    clip_tokenizer(model).save_pretrained(folder / "hf")
    return [f"open_clip:local-dir:{theirs}", ours, f"hf:{folder / 'hf'}"]


def tables(model: str, root: Path, *options: str) -> dict[str, Any]:
    given = [f"model={model}", f"root={root}", f"out={root}/out", *options]
    first = run_protocol("zero_shot", [*given, "data=[demo_food]"])
    second = run_protocol("retrieval", [*given, "data=[demo_fluent]"])
    return {"scorer": first["scorer"], "zero_shot": first["benchmarks"], "retrieval": second["benchmarks"]}


def write_checkpoint(folder: Path, model: DualEncoder) -> None:
    """Write the model as ZeRO stage 0 saves it."""
    folder.mkdir(parents=True)
    torch.save({"module": model.state_dict()}, folder / "mp_rank_00_model_states.pt")
    state = LoopState(step=3, model=dataclasses.asdict(model.config))
    (folder / STATE).write_text(json.dumps(dataclasses.asdict(state)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_webdataset(tmp_path / "demo_food", [f"dish {i}" for i in range(8)], [i % 8 for i in range(24)])
    captions = [[f"text {i} of {'abcdefgh'[i % 8]}", f"number {i}"] for i in range(24)]
    write_webdataset(tmp_path / "demo_fluent", None, captions)
    return tmp_path


@pytest.mark.parametrize("tokens", ["false", "true"])
def test_one_clip_gives_equal_tables_in_both_forms(clip: list[str], root: Path, tokens: str) -> None:
    result, ours = (tables(model, root, f"tokens={tokens}") for model in clip[:2])
    assert ours == result and result["scorer"] == ("token-wise" if tokens == "true" else "pooled")
    assert 0 < result["retrieval"]["demo_fluent"]["i2t"]["r5"] < 1


def test_a_clip_of_transformers_has_the_vectors_of_its_own_code(clip: list[str]) -> None:
    theirs = CLIPModel.from_pretrained(clip[2].removeprefix("hf:")).eval()
    pooled, token_wise = (load_encoder(clip[2], tokens=tokens) for tokens in (False, True))
    pixels = torch.stack([pooled.transform(picture(i, 224)) for i in range(2)])
    ids, lengths = tokenize(TEXTS)
    with torch.inference_mode():
        seen, read = theirs.vision_model(pixels), theirs.text_model(ids)
        images = theirs.visual_projection(theirs.vision_model.post_layernorm(seen.last_hidden_state))
        texts = theirs.text_projection(read.last_hidden_state)
    own = torch.cat([row[:length] for row, length in zip(texts, lengths, strict=True)])
    torch.testing.assert_close(pooled.encode_images(pixels), normalize(images[:, 0], dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(token_wise.encode_images(pixels), normalize(images[:, 1:], dim=-1), atol=1e-5, rtol=0)
    tokens, counts = token_wise.encode_texts(TEXTS)
    torch.testing.assert_close(tokens, normalize(own, dim=-1), atol=1e-5, rtol=0)
    assert counts is not None and counts.tolist() == lengths.tolist() == token_wise.token_counts(TEXTS)
    ends = tokens[counts.cumsum(0) - 1]  # [EOS] is the pooled token
    torch.testing.assert_close(ends, pooled.encode_texts(TEXTS)[0], atol=1e-5, rtol=0)
    assert token_wise.tokens("two dogs") == ["[BOS]", "two", "dogs", "[EOS]"]
    larger = load_encoder(clip[2], 256, tokens=True)
    assert larger.encode_images(torch.stack([larger.transform(picture(0, 256))])).shape[1] == 8 * 8


def test_a_siglip_and_its_tokens_are_those_of_its_pooling_head(tmp_path: Path) -> None:
    """For an image of one patch and a text of full length, the pooled vector is the vector of a token."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    SiglipModel(
        SiglipConfig(
            vision_config={**tower, "image_size": 8, "patch_size": 8},
            text_config={**tower, "max_position_embeddings": 16, "vocab_size": 49408, "projection_size": 32},
        )
    ).save_pretrained(tmp_path)
    clip_tokenizer(build_model(tiny_config())).save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    pooled, token_wise = (load_encoder(f"hf:{tmp_path}", tokens=tokens) for tokens in (False, True))
    pixels = pooled.transform(picture(1)).unsqueeze(0)
    one = token_wise.encode_images(pixels)
    assert one.shape == (1, 1, 32) and token_wise.grid == (1, 1)
    torch.testing.assert_close(one[:, 0], pooled.encode_images(pixels), atol=1e-6, rtol=0)
    long = "word " * 40
    tokens, lengths = token_wise.encode_texts([long, "cat"])
    assert lengths is not None and lengths.tolist() == [16, 3]
    torch.testing.assert_close(tokens[15], pooled.encode_texts([long])[0][0], atol=1e-6, rtol=0)
    assert token_wise.token_counts([long, "cat"]) == [42, 3]


def test_an_exported_multi_vector_folder_gives_the_tables_of_our_file(root: Path) -> None:
    ours = write_model(root / "m.safetensors")
    write_multi_vector(read_source(ours), str(root / "exported"))
    with pytest.raises(UserError, match="trust_remote_code=true if you trust it"):
        load_encoder(str(root / "exported"))
    result = tables(str(root / "exported"), root, "trust_remote_code=true")
    assert result == tables(ours, root)
    encoder = load_encoder(f"mv:{root / 'exported'}", trust_remote_code=True)
    assert (encoder.image_size, encoder.grid) == (SIDE, (4, 4))
    assert encoder.tokens("two dogs")[1:3] == ["two", "dogs"]


def test_a_checkpoint_and_its_run_folder_are_models(tmp_path: Path) -> None:
    file = write_model(tmp_path / "m.safetensors")
    write_checkpoint(tmp_path / "run" / "checkpoints" / "step00000003", load_model(file))
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    expected = load_encoder(file).encode_images(pixels)
    for place in ("run", "run/checkpoints/step00000003"):
        assert torch.equal(load_encoder(str(tmp_path / place)).encode_images(pixels), expected)


def test_tokens_are_kept_in_the_precision_that_was_asked_for(tmp_path: Path) -> None:
    file = write_model(tmp_path / "m.safetensors")
    full, half = (load_scorer(file, precision=precision) for precision in ("fp32", "bf16"))
    images = [s.encode_images(torch.stack([s.transform(picture(i)) for i in range(3)])) for s in (full, half)]
    texts = [s.encode_texts(TEXTS) for s in (full, half)]
    assert images[1].dtype == texts[1].values.dtype == torch.bfloat16
    results = [s.similarity(i, t) for s, i, t in zip((full, half), images, texts, strict=True)]
    assert results[1].i2t.dtype == torch.float32
    torch.testing.assert_close(results[0].i2t, results[1].i2t, atol=0.03, rtol=0)
    assert not torch.equal(results[0].i2t, results[1].i2t)


def damage(folder: Path, how: str) -> None:
    """Damage a saved model as a broken download or a renamed layer does."""
    weights = next(folder.glob("*.safetensors"))
    if how == "tokenizer":
        for file in [*folder.glob("tokenizer*"), *folder.glob("vocab*"), *folder.glob("merges*")]:
            file.unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    else:
        with safe_open(weights, "pt") as file:
            names, metadata = sorted(file.keys()), file.metadata()
            left = (
                [name for name in names if not re.search("vision|visual|image", name)]
                if how == "vision"
                else names[::2]
            )
            tensors = {name: file.get_tensor(name) for name in left}
        save_file(tensors, weights, metadata)


@pytest.mark.parametrize("form", ["hf", "open_clip:local-dir", "mv", "ColPali", "ColQwen2"])
@pytest.mark.parametrize("how", ["vision", "half", "cut", "tokenizer"])
def test_a_damaged_model_is_a_sentence(form: str, how: str, clip: list[str], tmp_path: Path) -> None:
    """New weights would be drawn, or all texts be equal, and an evaluation would go on with them."""
    if form in KINDS:
        folder = Path(write_late_interaction_model(tmp_path / "model", form).removeprefix("mv:"))
        form = "mv"
    elif form == "mv":
        write_multi_vector(read_source(write_model(tmp_path / "m.safetensors")), str(tmp_path / "model"))
        folder = tmp_path / "model"
    else:
        folder = tmp_path / "model"
        shutil.copytree(next(name for name in clip if name.startswith(form)).removeprefix(f"{form}:"), folder)
    load_encoder(f"{form}:{folder}", trust_remote_code=True)
    if form.startswith("open_clip") and how == "tokenizer":
        return  # it has its own
    damage(folder, how)
    with pytest.raises(UserError, match=r"lacks weights|cannot load|as the same tokens") as error:
        load_encoder(f"{form}:{folder}", trust_remote_code=True)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_library_is_a_sentence(clip: list[str]) -> None:
    with pytest.raises(UserError, match="mv:"):
        load_encoder(f"mv:{clip[2].removeprefix('hf:')}")


def test_what_has_no_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no patch tokens, its image tower is not a vision transformer"):
        load_encoder("open_clip:RN50", tokens=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="is a 'bert', and hf: takes clip, metaclip_2, siglip"):
        load_encoder(f"hf:{tmp_path}")
