"""Late-interaction models of other projects, as ``mv:``: evaluated, indexed and searched with their library's scores.

A ColPali sees squares. A ColQwen2 and an EmbeddingGemma 2 see each picture in its own shape, so that the number of
tokens depends on the picture.
"""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.eval.encoders import load_encoder, stacked
from filip.eval.scorer import load_scorer
from filip.index.build import Build
from filip.index.build import main as build
from filip.search.__main__ import Search
from filip.search.__main__ import main as search
from tests.eval.miniature import picture, run_protocol
from tests.support.late_interaction_models import KINDS, write_late_interaction_model

TEXTS = [f"{first} {second}" for first in ("a", "two", "red") for second in ("cat", "dogs", "red the")]
SIZES = [(64, 64), (128, 64), (60, 200), (48, 48), (300, 90), (64, 80), (90, 64), (48, 200), (70, 70)]
PICTURES: list[Image.Image] = [picture(n, 96).resize(size) for n, size in enumerate(SIZES)]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_late_interaction_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def theirs(model: str) -> torch.Tensor:
    """Return the library's own scores [images, texts], as means over a text's tokens."""
    from sentence_transformers import MultiVectorEncoder

    own = MultiVectorEncoder(model.removeprefix("mv:"), device="cpu")
    seen, read = [own.encode_document([image])[0] for image in PICTURES], own.encode_query(TEXTS)
    lengths = 1 if own.similarity_fn_name == "meanmaxsim" else torch.tensor([len(tokens) for tokens in read])
    return own.similarity(read, seen).T / lengths


def test_scores_are_those_of_the_models_own_library(model: str, theirs: torch.Tensor) -> None:
    scorer = load_scorer(model)
    texts = scorer.encode_texts(TEXTS)
    together = scorer.encode_images(stacked([scorer.transform(image) for image in PICTURES]))
    result = scorer.similarity(together, texts)
    torch.testing.assert_close(result.t2i, theirs, atol=1e-5, rtol=0)
    assert scorer.encoder.grid == (0, 0)  # its prompt is among the tokens of an image
    alone = [scorer.encode_images(stacked([scorer.transform(image)])) for image in PICTURES]
    assert together.any(-1).sum(1).tolist() == [image.shape[1] for image in alone]
    assert (scorer.image_size == 0) == (len({image.shape[1] for image in alone}) > 3)
    torch.testing.assert_close(torch.cat([scorer.similarity(image, texts).i2t for image in alone]), result.i2t)


def test_retrieval_index_and_search_rank_as_the_library_does(
    model: str, theirs: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, image in enumerate(PICTURES):
        image.save(tmp_path / f"{n}.png")
    lines = [{"image": f"{n}.png", "caption": text} for n, text in enumerate(TEXTS)]
    table, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    table.write_text("\n".join(map(json.dumps, lines)))
    given = [f"model={model}", f"data=[{table}]", "prompts={c}", "batch_size=2", f"out={out}"]
    (result,) = run_protocol("retrieval", given)["benchmarks"].values()
    ranks = (theirs.diagonal()[:, None] < theirs.T).sum(1)
    assert result["t2i"]["r1"] == pytest.approx((ranks < 1).float().mean().item())
    assert result["t2i"]["r5"] == pytest.approx((ranks < 5).float().mean().item()) and 0 < result["t2i"]["r5"] < 1

    table.unlink()
    common = [f"model={model}", f"images={tmp_path}", "batch_size=2", "fit=pad" if "colpali" in model else "fit=crop"]
    for name, how, tolerance in (("exact", ["dtype=float32"], 1e-5), ("small", [], 0.02)):
        index = tmp_path / "indexes" / name
        run_command(build, Build, argv=[*common, f"out={index}", *how])
        for text, scores in zip(TEXTS[:3], theirs.T, strict=False):
            capsys.readouterr()
            run_command(search, Search, argv=[f"images={index}", f"text={text}", "text_tokens=all", "json=true"])
            hits = {Path(hit["path"]).stem: hit["score"] for hit in json.loads(capsys.readouterr().out)["hits"]}
            result = torch.tensor([hits[str(n)] for n in range(9)])
            torch.testing.assert_close(result, scores, atol=tolerance, rtol=0)


def test_what_is_made_for_squares_is_refused(model: str) -> None:
    with pytest.raises(UserError, match="image_size= cannot be changed"):
        load_encoder(model, image_size=640)
