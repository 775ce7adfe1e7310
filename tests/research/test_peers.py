"""FLAIR, FG-CLIP and FG-CLIP 2 in their authors' files, at random weights, against their mathematics written down."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import filip
from filip.errors import UserError
from filip.eval.encoders import load_encoder
from filip.eval.fit import Boxed
from filip.eval.scorer import load_scorer
from filip.export.hf_folder import clip_tokenizer
from filip.index.build import Build
from filip.index.build import main as build
from filip.models import build_model
from tests.eval.miniature import SIDE, picture, tiny_config
from tests.research.flair import GRID, PATCH, State, attention, flair_images, flair_similarity, flair_state, norm, part

DIM = 32
TEXTS = ["a red cat", "Two dogs on a beach, at night", "a pear", "a long " + "word " * 90]


@pytest.fixture(scope="module")
def flair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, State]:
    file, state = tmp_path_factory.mktemp("flair") / "flair-tiny.pt", flair_state()
    named = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 32, "name": "flair", "state_dict": named, "optimizer": {"state": {}}}, file)
    return f"flair:{file}", state


# ---- FG-CLIP and FG-CLIP 2 ---------------------------------------------------------------------------

TOWER = {"hidden_size": DIM, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


def shaken(model: torch.nn.Module) -> State:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return {name: value.contiguous() for name, value in model.state_dict().items()}


def write_folder(folder: Path, config: dict[str, object], state: State) -> None:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    clip_tokenizer(build_model(tiny_config())).save_pretrained(folder)
    if config["model_type"] == "fgclip2":  # SigLIP 2's tokenizers make no mask: padding is read
        about = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_input_names": ["input_ids"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def fgclip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, State]:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    text = {**TOWER, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
    config = CLIPConfig(
        vision_config={**TOWER, "image_size": SIDE, "patch_size": PATCH}, text_config=text, projection_dim=16
    )
    state, embeddings = shaken(CLIPModel(config)), "text_model.embeddings.position_embedding"
    state |= {f"{embeddings}_{s}.weight": torch.randn(248, DIM) for s in ("ori", "res")}
    state |= {"text_filip_projection.weight": torch.randn(16, DIM), "logit_scale_hardneg": torch.ones([])}
    about = config.to_dict() | {"architectures": ["FGCLIPModel"]}
    about["auto_map"] = {"AutoModelForCausalLM": "modeling_fgclip.FGCLIPModel"}
    folder = tmp_path_factory.mktemp("fgclip")
    write_folder(folder, about, state)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return f"fgclip:{folder}", state


@pytest.fixture(scope="module")
def fgclip2(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, State]:
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    torch.manual_seed(1)
    config = Siglip2Config(
        vision_config={**TOWER, "num_patches": GRID * GRID, "patch_size": PATCH},
        text_config={**TOWER, "vocab_size": 49408, "max_position_embeddings": 64, "projection_size": DIM},
    )
    state = shaken(Siglip2Model(config))
    state |= {f"dense_feature_head.{n}": torch.randn_like(v) / 4 for n, v in part(state, "vision_model.head.").items()}
    for head in ("longtext_head", "boxtext_head"):
        state |= {f"{head}.weight": torch.randn(DIM, DIM), f"{head}.bias": torch.randn(DIM)}
    embeddings = "text_model.embeddings.position_embedding"
    state |= {f"{embeddings}_{s}.weight": torch.randn(196, DIM) for s in ("ori", "res")}
    folder = tmp_path_factory.mktemp("fgclip2")
    about = config.to_dict() | {"model_type": "fgclip2", "architectures": ["Fgclip2Model"]}
    write_folder(folder, about, state)
    Siglip2ImageProcessorPil(patch_size=PATCH).save_pretrained(folder)
    return f"fgclip:{folder}", state


def theirs(kind: str, state: State, changed: State | None = None, positions: int | None = None) -> torch.nn.Module:
    """Return the library's model with the weights, some of them changed, and so many positions of a text."""
    from transformers import CLIPConfig, CLIPModel, Siglip2Config, Siglip2Model

    text = {**TOWER, "vocab_size": 49408, "max_position_embeddings": positions or (77 if kind == "fgclip" else 64)}
    vision = {**TOWER, "patch_size": PATCH}
    model: torch.nn.Module
    if kind == "fgclip":
        ids = {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
        config = CLIPConfig(vision_config=vision | {"image_size": SIDE}, text_config=text | ids, projection_dim=16)
        model = CLIPModel(config)
    else:
        vision["num_patches"] = GRID * GRID
        model = Siglip2Model(Siglip2Config(vision_config=vision, text_config=text))
    model.load_state_dict({name: (state | (changed or {}))[name] for name in model.state_dict()})
    return model.eval()


def pictures() -> list[Image.Image]:
    return [picture(n, 48).resize(size) for n, size in enumerate(((48, 48), (72, 40), (40, 64)))]


def tokens(tokenizer: Any, texts: Sequence[str], length: int) -> Any:
    lower = [text.lower() for text in texts]
    return tokenizer(lower, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


@torch.inference_mode()
def expected(kind: str, state: State, images: Sequence[Image.Image], texts: Sequence[str], folder: str) -> Tensor:
    """Return the similarities [images, texts] as the authors compute them."""
    from transformers import AutoImageProcessor, AutoTokenizer, Siglip2ImageProcessorPil

    if kind == "flair":
        from open_clip import image_transform

        see = image_transform(SIDE, is_train=False)
        return flair_similarity(state, torch.stack([see(image) for image in images]), texts)
    model, tokenizer = theirs(kind, state), AutoTokenizer.from_pretrained(folder)
    words = model.get_text_features(**tokens(tokenizer, texts, 77 if kind == "fgclip" else 64))
    if kind == "fgclip":
        see = AutoImageProcessor.from_pretrained(folder, backend="pil")
        squeezed = [image.resize((SIDE, SIDE)) for image in images]
        seen = model.get_image_features(see(images=squeezed, return_tensors="pt")["pixel_values"])
        results = [seen.pooler_output]
    else:  # one by one, without padding to the largest
        see = Siglip2ImageProcessorPil.from_pretrained(folder)
        made = [see(images=image, max_num_patches=128, return_tensors="pt") for image in images]
        results = [model.get_image_features(**one).pooler_output for one in made]
    return F.normalize(torch.cat(results), dim=-1) @ F.normalize(words.pooler_output, dim=-1).T


PEERS = ["flair", "fgclip", "fgclip2"]


@pytest.mark.parametrize("kind", PEERS)
def test_a_peer_compares_as_its_authors_do(kind: str, request: pytest.FixtureRequest) -> None:
    name, state = request.getfixturevalue(kind)
    scorer = load_scorer(name)
    pixels = torch.stack([scorer.transform(image) for image in pictures()])
    result = scorer.similarity(scorer.encode_images(pixels), scorer.encode_texts(TEXTS))
    own = expected(kind, state, pictures(), TEXTS, name.partition(":")[2])
    torch.testing.assert_close(result.i2t, own, atol=1e-5, rtol=0)
    assert torch.equal(result.i2t, result.t2i) and own.std() > 0.01


def test_five_lines_compare_as_well_and_an_index_refuses(flair: tuple[str, State], tmp_path: Path) -> None:
    name, state = flair
    for number, image in enumerate(pictures()):
        image.save(tmp_path / f"{number}.png")
    result = filip.load(name).similarity([tmp_path / f"{n}.png" for n in range(3)], TEXTS)
    own = expected("flair", state, pictures(), TEXTS, "")
    torch.testing.assert_close(result.i2t, own, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"an index cannot hold the comparisons of flair flair-tiny, .* tokens=true"):
        build(Build(model=name, images=str(tmp_path), out=str(tmp_path / "index")))


def dense(kind: str, state: State, pixels: Tensor) -> Tensor:
    """Return the authors' features of patches [b, n, d] of pixels [b, 3, SIDE, SIDE]."""
    if kind == "flair":
        return flair_images(state, pixels)
    tower = theirs(kind, state).vision_model
    if kind == "fgclip":
        # The last layer, whose attention only sees the patch itself, is a function of its input.
        x = tower(pixels, output_hidden_states=True).hidden_states[2]
        own = part(state, "vision_model.encoder.layers.2.")
        for name, steps in (
            ("layer_norm1", ("self_attn.v_proj", "self_attn.out_proj")),
            ("layer_norm2", ("mlp.fc1", "mlp.fc2")),
        ):
            y = norm(x, own, name)
            for step in steps:
                y = y @ own[f"{step}.weight"].T + own[f"{step}.bias"]
                y = y * torch.sigmoid(1.702 * y) if step == "mlp.fc1" else y
            x = x + y
        return norm(x[:, 1:], state, "vision_model.post_layernorm") @ state["visual_projection.weight"].T
    patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).unflatten(2, (3, -1)).transpose(2, 3).flatten(2)
    shapes = torch.tensor([[GRID, GRID]] * len(pixels))
    x = tower(patches, torch.ones(patches.shape[:2], dtype=torch.int64), shapes).last_hidden_state
    own = part(state, "dense_feature_head.")
    x = attention(x, x, x, part(own, "attention."), 2)
    y = norm(x, own, "layernorm", 1e-6) @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"]
    return x + F.gelu(y, approximate="tanh") @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"]


@pytest.mark.parametrize("kind", PEERS)
@torch.inference_mode()
def test_token_wise_a_peer_s_patches_are_its_dense_features(kind: str, request: pytest.FixtureRequest) -> None:
    name, state = request.getfixturevalue(kind)
    scorer = load_scorer(name, tokens=True)
    assert scorer.token_wise and scorer.encoder.grid == (GRID, GRID)
    pixels = torch.stack([scorer.transform(image) for image in pictures()])
    assert pixels.shape == (3, 3, SIDE, SIDE)
    own = F.normalize(dense(kind, state, pixels), dim=-1)
    torch.testing.assert_close(scorer.encode_images(pixels), own, atol=1e-5, rtol=0)
    texts = scorer.encode_texts(TEXTS)
    assert texts.lengths is not None and texts.lengths.tolist() == [5, 10, 4, 64 if kind == "fgclip2" else 77]
    words = texts.values.split(texts.lengths.tolist())
    result = scorer.similarity(own, texts)
    for number, word in enumerate(words):
        products = own @ word.T
        torch.testing.assert_close(result.i2t[:, number], products.amax(2).mean(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(result.t2i[:, number], products.amax(1).mean(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["fgclip", "fgclip2"])
@torch.inference_mode()
def test_a_box_is_pooled_from_dense_features_and_then_normalised(kind: str, request: pytest.FixtureRequest) -> None:
    """As FG-CLIP's fgovd_eval.py does it: along the edges of patches, RoIAlign is their mean."""
    name, state = request.getfixturevalue(kind)
    encoder = load_encoder(name, SIDE, fit="box")
    assert isinstance(encoder, Boxed)
    plain = encoder.encoder.transform(picture(1))[None]
    place = torch.zeros(1, 1, SIDE, SIDE)
    place[0, 0, 0, :4] = torch.tensor([0.25, 0.25, 1, 0.75])
    own = dense(kind, state, plain)[0].unflatten(0, (GRID, GRID))[1:3, 1:].flatten(0, 1).mean(0)
    result = encoder.encode_images(torch.cat([plain, place], 1))[0]
    torch.testing.assert_close(result, F.normalize(own, dim=-1), atol=1e-5, rtol=0)


LONG: list[tuple[str, str, int, Callable[[State], State]]] = [
    ("fgclip", "long", 248, lambda s: {"text_projection.weight": s["text_filip_projection.weight"]}),
    ("fgclip2", "long", 196, lambda s: {f"text_model.head.{e}": s[f"longtext_head.{e}"] for e in ("weight", "bias")}),
    ("fgclip2", "box", 64, lambda s: {f"text_model.head.{e}": s[f"boxtext_head.{e}"] for e in ("weight", "bias")}),
]


@pytest.mark.parametrize(("kind", "walk", "positions", "head"), LONG, ids=[f"{k}-{w}" for k, w, *_ in LONG])
@torch.inference_mode()
def test_long_captions_and_parts_have_positions_and_a_head(
    kind: str, walk: str, positions: int, head: Callable[[State], State], request: pytest.FixtureRequest
) -> None:
    from transformers import AutoTokenizer

    name, state = request.getfixturevalue(kind)
    encoder = load_encoder(f"{name}:{walk}")
    changed, place = head(state), "text_model.embeddings.position_embedding"
    if walk == "long":
        changed[f"{place}.weight"] = torch.cat([state[f"{place}_ori.weight"][:20], state[f"{place}_res.weight"][20:]])
    model = theirs(kind, state, changed, positions)
    tokenizer = AutoTokenizer.from_pretrained(name.partition(":")[2])
    result = model.get_text_features(**tokens(tokenizer, TEXTS, positions))
    own = F.normalize(result.pooler_output, dim=-1)
    torch.testing.assert_close(encoder.encode_texts(TEXTS)[0], own, atol=1e-5, rtol=0)
    assert encoder.context_length == positions


def test_what_a_peer_cannot_is_said_in_a_sentence(
    flair: tuple[str, State], fgclip: tuple[str, State], fgclip2: tuple[str, State], tmp_path: Path
) -> None:
    folder = fgclip[0].partition(":")[2]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    torch.save({"state_dict": {"visual.proj": torch.ones(2, 2)}}, tmp_path / "clip.pt")
    (empty := tmp_path / "empty").mkdir()
    (broken := tmp_path / "broken").mkdir()
    (broken / "config.json").write_text("{")
    for name, options, message in (
        (f"hf:{folder}", {}, f"is an FG-CLIP, .*: write fgclip:{folder}"),
        (f"fgclip:{folder}:box", {}, "after the folder may stand long"),
        (f"fgclip:{tmp_path}", {}, f"is not an FG-CLIP, but a 'bert': try hf:{tmp_path}"),
        ("fgclip:/nowhere", {}, "there is no config.json at fgclip:/nowhere"),
        (f"fgclip:{empty}", {}, f"there is no config.json in fgclip:{empty}"),
        (f"fgclip:{broken}", {}, "config.json is not JSON"),
        (fgclip2[0], {"fit": "box"}, "has no patches to pool in a box"),
        (flair[0], {"fit": "box"}, "attends to all patches of a picture; add tokens=true"),
        (flair[0], {"image_size": 64}, "sees pictures at its own resolution"),
        (f"flair:{tmp_path}/clip.pt", {}, "is not a FLAIR: it has no image_post.proj"),
        ("flair:nowhere.pt", {}, "there is no"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_encoder(name, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
