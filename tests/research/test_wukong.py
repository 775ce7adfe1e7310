"""Wukong's checkpoints in the form of theirs, in float16, against towers and scores by their equations."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.eval.encoders import load_encoder
from filip.eval.protocols.zero_shot import ZeroShotSettings, class_scores, settle
from filip.eval.scorer import scorer_for
from filip.eval.text_tokens import kept_tokens
from filip.export.__main__ import Export, export
from filip.models import load_model
from filip.search import __main__ as search
from filip.train.warm_start import check_init_from, content_hash, load_initial
from tests.eval.miniature import picture, run_protocol, write_webdataset
from tests.research.test_declip import Block
from tests.support.squares import write_shards
from tests.support.training import compose, losses, run_many, train_arguments

WIDTH, TEXT_WIDTH, LAYERS, SIDE, PATCH, CONTEXT = 128, 64, 2, 32, 8, 12
KINDS = {"CLIP": (512, 0), "FILIP": (256, 0), "Wukong": (256, 3)}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2028", *"一只猫狗在海滩的照片红色"]
PIECES += ["cat", "##s", "a", "2", "##4", "。", "，", "."]
TEXTS = ["一只猫", "红色的狗在海滩。", "Cats，24 A", "猫" * 40]
IDS = [[2, 5, 6, 7, 3], [2, 15, 16, 12, 8, 9, 10, 11, 22, 3], [2, 17, 18, 23, 20, 21, 19, 3], [2, *[7] * 10, 3]]


class Theirs(nn.Module):
    """The towers by their equations, under the names of their state dict."""

    def __init__(self, dim: int, reduced: int) -> None:
        super().__init__()
        self.visual, self.transformer = nn.Module(), nn.Module()
        for tower, width, places in (
            (self.visual, WIDTH, (SIDE // PATCH) ** 2 + 1),
            (self.transformer, TEXT_WIDTH, CONTEXT),
        ):
            tower.positional_embedding = nn.Parameter(torch.randn(places, width) * 0.1)
            holder = tower if tower is self.transformer else nn.Module()
            holder.resblocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
            if holder is not tower:
                tower.transformer = holder
        self.visual.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.visual.proj = nn.Parameter(torch.randn(WIDTH, dim))
        self.transformer.token_embedding = nn.Embedding(len(PIECES), TEXT_WIDTH)
        self.transformer.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.transformer.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, dim))
        self.loss = nn.Module()
        self.loss.logit_scale = nn.Parameter(torch.tensor(3.25))
        if reduced:
            learner = self.visual.token_learner = nn.Module()
            learner.norm = nn.LayerNorm(dim)
            first = nn.Conv2d(dim, dim, 1, groups=8, bias=False)
            learner.attention_maps = nn.Sequential(first, nn.Conv2d(dim, reduced, 1, bias=False))
            learner.feat_conv = nn.Conv2d(dim, dim, 1, groups=8, bias=False)
        for parameter in self.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)

    def images(self, pixels: Tensor) -> Tensor:
        tower = self.visual
        x = tower.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], 1) + tower.positional_embedding
        x = tower.ln_pre(x).transpose(0, 1)
        for block in tower.transformer.resblocks:
            x = block(x, None)
        x = tower.ln_post(x.transpose(0, 1)) @ tower.proj
        if x.shape[2] != 256:
            return F.normalize(x[:, 0], dim=-1)
        x = x[:, 1:]
        if learner := getattr(tower, "token_learner", None):  # z_t = sum_i softmax_i(w_t . W_a norm(x_i)) W_f x_i
            first, second = learner.attention_maps
            attention = by_groups(learner.norm(x), first.weight) @ second.weight[:, :, 0, 0].T
            x = attention.softmax(1).transpose(1, 2) @ by_groups(x, learner.feat_conv.weight)
        return F.normalize(x, dim=-1)

    def texts(self, rows: list[list[int]]) -> list[Tensor]:
        """Return unit vectors of each text's tokens, or in one row that of its [SEP]."""
        tower, found = self.transformer, []
        for row in rows:
            x = tower.token_embedding.weight[row] + tower.positional_embedding[: len(row)]
            x, mask = x[:, None], torch.full((len(row), len(row)), -torch.inf).triu(1)
            for block in tower.resblocks:
                x = block(x, mask)
            x = F.normalize(tower.ln_final(x[:, 0]) @ tower.text_projection, dim=-1)
            found.append(x if x.shape[1] == 256 else x[-1:])
        return found


def by_groups(x: Tensor, weight: Tensor) -> Tensor:
    parts = zip(x.chunk(8, -1), weight[:, :, 0, 0].chunk(8), strict=True)
    return torch.cat([part @ block.T for part, block in parts], -1)


@pytest.fixture(scope="module", params=KINDS)
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Theirs, str]:
    return written(tmp_path_factory.mktemp(request.param), request.param)


def written(folder: Path, kind: str) -> tuple[Theirs, str]:
    torch.manual_seed(0)
    model = Theirs(*KINDS[kind]).half().float().eval()
    torch.save({"state_dict": {name: value.half() for name, value in model.state_dict().items()}}, folder / "w.ckpt")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    return model, str(folder / "w.ckpt")


@torch.no_grad()
def test_towers_tokens_and_scores_are_theirs(theirs: tuple[Theirs, str]) -> None:
    model, file = theirs
    encoder = load_encoder(f"wukong:{file}")
    pixels = torch.randn(3, 3, SIDE, SIDE)
    images, (words, lengths) = encoder.encode_images(pixels), encoder.encode_texts(TEXTS)
    expected, per_text = model.images(pixels), model.texts(IDS)
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(words, torch.cat(per_text), atol=1e-6, rtol=0)
    ids, counts = encoder.model.tokenizer.tokenize(TEXTS, CONTEXT)
    assert [row[:n].tolist() for row, n in zip(ids, counts, strict=True)] == IDS
    assert encoder.model.logit_scale.item() == model.loss.logit_scale.item()
    assert encoder.tokens("Cats") == ["[CLS]", "cat", "s", "[SEP]"] and encoder.token_counts(TEXTS)[3] == 42
    if lengths is None:
        with pytest.raises(UserError, match="one vector a text, which has no padding"):
            load_encoder(f"wukong:{file}:padding")
        return
    assert lengths.tolist() == [len(row) for row in IDS]
    for name, zero in ((file, False), (f"{file}:padding", True)):
        scorer = scorer_for(load_encoder(f"wukong:{name}"))
        similarity = scorer.similarity(images, scorer.encode_texts(TEXTS))
        for number, own in enumerate(per_text):
            scores = expected @ own.T
            best = scores.amax(2)
            if zero and len(own) < CONTEXT:
                best = best.clamp(min=0)
            torch.testing.assert_close(similarity.i2t[:, number], best.mean(1), atol=1e-6, rtol=0)
            torch.testing.assert_close(similarity.t2i[:, number], scores.amax(1).mean(1), atol=1e-6, rtol=0)
        assert ("tokens of a text" in scorer.encoder.details) == zero


def test_prompts_are_averaged_as_probabilities(tmp_path: Path) -> None:
    encoder = load_encoder(f"wukong:{written(tmp_path, 'FILIP')[1]}")
    scorer = scorer_for(encoder)
    assert settle(ZeroShotSettings(), encoder).ensemble == "probability"
    images = encoder.encode_images(torch.randn(2, 3, SIDE, SIDE))
    texts = [f"{name}{ending}" for name in ("猫", "狗", "海滩") for ending in ("", "的照片。")]
    raw = scorer.similarity(images, scorer.encode_texts(texts)).i2t
    expected = (raw[:, 0::2].softmax(1) + raw[:, 1::2].softmax(1)) / 2
    result = class_scores(scorer, images, scorer.encode_texts(texts), 2, "probability").i2t
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("kind", ["FILIP", "Wukong"])
def test_a_chinese_example_is_evaluated_searched_and_exported(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"wukong:{written(tmp_path, kind)[1]}"
    captions = [["一只猫"], ["红色的狗，在海滩"], ["海滩的照片。", "海"]]
    write_webdataset(tmp_path / "zh", None, captions, shards=1)
    run_protocol("retrieval", [f"model={name}:padding", f"data=[{tmp_path}/zh]", f"out={tmp_path}/r", "device=cpu"])
    result = json.loads(next((tmp_path / "r").rglob("*.json")).read_text())
    assert result["tokens of a text"].startswith("padding counts as zero") and "is none" not in capsys.readouterr().err

    (tmp_path / "photos").mkdir()
    for number in range(4):
        picture(number, 60).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.setattr(search, "place_of", lambda config, model: tmp_path / "index")
    given = [str(tmp_path / "photos"), "红色的猫", f"model={name}", "json=true", "device=cpu"]
    run_command(search.main, search.Search, argv=given, words=("images", "text"))
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert len(hits) == 4 and ("words" in hits[0]) == (kind == "FILIP"), hits[0]
    if kind == "FILIP":
        assert [word["word"] for word in hits[0]["words"]] == ["红色", "猫"]
        encoder = load_encoder(name)
        assert kept_tokens("红色的猫", encoder.tokens("红色的猫"), "content") == [False, True, True, False, True, False]
        write_webdataset(tmp_path / "named", ["猫", "狗"], [0, 1], shards=1)
        run_protocol("zero_shot", [f"model={name}", f"data=[{tmp_path}/named]", f"out={tmp_path}/z", "device=cpu"])
        settings = json.loads(next((tmp_path / "z").rglob("*.json")).read_text())["settings"]
        assert (settings["ensemble"], settings["prompts"]) == ("probability", "{c}")

    for to in ("hf", "onnx"):
        with pytest.raises(UserError, match=r"to=(safetensors|hf)"):
            export(Export(name, str(tmp_path / to), to))
    export(Export(name, str(tmp_path / "m.safetensors")))
    source = load_encoder(name)
    again, pixels = load_model(tmp_path / "m.safetensors"), torch.randn(1, 3, SIDE, SIDE)
    assert again.config.reduction == (KINDS[kind][1] or None)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(pixels), source.model.encode_image(pixels), atol=0, rtol=0)
    assert again.tokenizer.tokenize(TEXTS, CONTEXT)[0].equal(source.model.tokenizer.tokenize(TEXTS, CONTEXT)[0])


@pytest.mark.slow
def test_a_training_goes_on_from_it(tmp_path: Path) -> None:
    write_shards(tmp_path / "squares", shards=1, per_shard=64)
    file = written(tmp_path, "Wukong")[1]
    name = f"wukong:{file}"
    check_init_from(name)
    assert content_hash(name) == content_hash(name) and load_initial(name, compose("model=tiny").model).config.reduction
    few = ("max_steps=3", "optimizer.warmup_steps=1", f"init_from={name}", "engine=ddp", "loss.pooled=0.1")
    arguments = train_arguments(tmp_path / "squares", tmp_path / "run", *few)
    assert run_many(1, [arguments], tmp_path / "log") == [0], (tmp_path / "log").read_text()[-3000:]
    assert len(losses(tmp_path / "run")) == 3
    models = load_model(tmp_path / "run" / "model.safetensors"), load_initial(name, compose("model=tiny").model)
    trained, start = (list(model.reduction.parameters()) for model in models)
    moved = [not torch.equal(a, b) for a, b in zip(trained, start, strict=True)]
    assert all(moved), "the reduction learns, too"


def test_what_is_no_checkpoint_of_theirs_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model, file = written(tmp_path, "FILIP")
    state = {name: value.half() for name, value in model.state_dict().items()}

    def refused(change: dict, reason: str, vocabulary: str = "") -> None:
        changed = {name: value for name, value in (state | change).items() if value is not None}
        torch.save(changed, tmp_path / "x.ckpt")  # without "state_dict", as their first files
        with pytest.raises(UserError, match=reason):
            load_encoder(f"wukong:{tmp_path}/x.ckpt{vocabulary}")

    assert load_encoder(f"wukong:{file}:{tmp_path}/vocab.txt").token_wise
    refused({"visual.conv1.weight": None}, r"it lacks visual\.conv1\.weight")
    refused({"transformer.resblocks.1.ln_1.bias": None}, r"it lacks transformer\.resblocks\.1\.ln_1\.bias")
    refused({"visual.token_learner.norm.weight": torch.ones(256)}, r"it lacks visual\.token_reduction\.")
    refused({"visual.proj": torch.zeros(WIDTH, 100)}, "its vectors have 100 numbers")
    refused({"visual.ln_post.bias": torch.zeros(7)}, "size mismatch")
    refused({"transformer.token_embedding.weight": torch.zeros(99, TEXT_WIDTH)}, "another vocabulary; it is BERT's")
    refused({}, "there is no vocabulary at .*cn-clip", f":{tmp_path}/gone.txt")
    (tmp_path / "no.ckpt").write_text("not a checkpoint")
    with pytest.raises(UserError, match="torch cannot read"):
        load_encoder(f"wukong:{tmp_path}/no.ckpt")
