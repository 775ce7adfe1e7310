"""FILIP by DeCLIP's authors: a checkpoint in the form of theirs, against towers written down from their code."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from filip.common.errors import UserError
from filip.eval.encoders import load_encoder
from filip.eval.scorer import scorer_for
from filip.text.tokenizer import tokenize
from tests.eval.miniature import picture

WIDTH, TEXT_WIDTH, DIM, MAPPED, LAYERS, SIDE, PATCH = 128, 64, 24, 16, 2, 32, 8
TEXTS = ["a cat", "two dogs on a beach, at night", "a " * 90]


class Block(nn.Module):
    """Their residual block: pre-norm, torch's attention, QuickGELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class Tower(nn.Module):
    def __init__(self, width: int, positions: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(positions, width) * 0.1)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(width) for _ in range(LAYERS))

    def blocks(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x.transpose(0, 1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class Theirs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Tower(WIDTH, (SIDE // PATCH) ** 2 + 1)
        self.visual.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.visual.proj = nn.Parameter(torch.randn(WIDTH, DIM))
        self.encode_text = Tower(TEXT_WIDTH, 77)
        self.encode_text.token_embedding = nn.Embedding(49409, TEXT_WIDTH)
        self.encode_text.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.encode_text.text_projection = nn.Linear(TEXT_WIDTH, DIM)
        self.image_mapping, self.text_mapping = nn.Linear(WIDTH, MAPPED), nn.Linear(TEXT_WIDTH, MAPPED)
        self.logit_scale, self.logit_scale_dense = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones([]))
        self.text_label_predictor = nn.Linear(TEXT_WIDTH, 49409)

    def encode_image_dense(self, pixels: Tensor) -> Tensor:
        tower = self.visual
        x = tower.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], 1) + tower.positional_embedding
        return self.image_mapping(tower.blocks(tower.ln_pre(x))[:, 1:])

    def encode_text_dense(self, texts: list[str]) -> Tensor:
        tower, ids = self.encode_text, torch.zeros(len(texts), 77, dtype=torch.int64)
        for row, text in enumerate(texts):  # [BOS] and [EOS] one higher than CLIP's
            own = tokenize([text], 77)[0][0]
            ids[row, : len(own)] = torch.where(own >= 49406, own + 1, own)
        mask = torch.full((77, 77), -torch.inf).triu(1)
        x = tower.token_embedding(ids) + tower.positional_embedding
        return self.text_mapping(tower.ln_final(tower.blocks(x, mask)))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Theirs, Path]:
    torch.manual_seed(0)
    model = Theirs().eval()
    file = tmp_path_factory.mktemp("declip") / "filip.pth.tar"
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "last_iter": 128000}, file)
    return model, file


def normalised(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return (pixels - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor((0.229, 0.224, 0.225)).view(
        3, 1, 1
    )


@torch.no_grad()
def test_it_scores_as_they_do_and_on_request_without_padding(theirs):
    model, file = theirs
    images = torch.stack([normalised(picture(i)) for i in range(3)])
    patches = F.normalize(model.encode_image_dense(images), dim=-1)
    words = F.normalize(model.encode_text_dense(TEXTS), dim=-1)
    logits = torch.einsum("ijk,lmk->iljm", patches, words)  # their get_logits, without the scale
    i2t, t2i = logits.amax(3).mean(2), logits.amax(2).mean(2)

    scorer = scorer_for(load_encoder(f"declip:{file}"))
    result = scorer.similarity(scorer.encode_images(images), scorer.encode_texts(TEXTS))
    assert result.i2t == pytest.approx(i2t, abs=2e-6) and result.t2i == pytest.approx(t2i, abs=2e-6)
    assert len(scorer.encoder.tokens("a cat")) == 77

    scorer = scorer_for(load_encoder(f"declip:{file}:words"))
    result = scorer.similarity(scorer.encode_images(images), scorer.encode_texts(TEXTS))
    for number, length in enumerate(tokenize(TEXTS, 77)[1].tolist()):
        own = logits[:, number, :, :length]
        assert result.i2t[:, number] == pytest.approx(own.amax(2).mean(1), abs=2e-6)
        assert result.t2i[:, number] == pytest.approx(own.amax(1).mean(1), abs=2e-6)
    assert scorer.encoder.tokens("a cat") == ["[BOS]", "a", "cat", "[EOS]"]


def test_pictures_are_resized_and_normalised_as_theirs(theirs):
    encoder = load_encoder(f"declip:{theirs[1]}")
    assert (encoder.image_size, encoder.grid) == (SIDE, (SIDE // PATCH, SIDE // PATCH))
    plain = encoder.transform(Image.new("RGB", (300, 200), (124, 116, 104)))
    assert plain.shape == (3, SIDE, SIDE) and plain.abs().max() < 0.01  # ImageNet's mean


def test_another_checkpoint_is_refused_in_a_sentence(theirs, tmp_path):
    state = {f"module.{name}": value for name, value in theirs[0].state_dict().items() if "mapping" not in name}
    torch.save({"model": state}, tmp_path / "clip.pth.tar")
    with pytest.raises(UserError, match="is not a FILIP of DeCLIP's authors: it has no image_mapping"):
        load_encoder(f"declip:{tmp_path}/clip.pth.tar")
    (tmp_path / "text.pth.tar").write_text("not a checkpoint")
    with pytest.raises(UserError, match="torch cannot read"):
        load_encoder(f"declip:{tmp_path}/text.pth.tar")
