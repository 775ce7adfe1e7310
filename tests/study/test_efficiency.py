"""The efficiency rows: what one rank of many computes, and one measurement of all rows by two ranks."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml

from filip.common.errors import UserError
from filip.models import TextFeatures
from filip.study import resolve
from filip.study.efficiency import Efficiency, Step, gathered_rows, gathered_texts, kept_tokens
from late_interaction import late_interaction
from tests.support.launched_ranks import Ranks

ROOT = Path(__file__).parents[2]


def texts(count: int = 5, dim: int = 8) -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 5, 2, 4, 6])[:count]
    tokens = F.normalize(torch.randn(int(lengths.sum()), dim, generator=generator), dim=-1)
    return TextFeatures(tokens.requires_grad_(), lengths)


def test_gathered_texts_are_copies_in_order_and_score_as_such() -> None:
    own = texts()
    tokens, lengths = gathered_texts(own, 13)
    assert lengths.tolist() == [3, 5, 2, 4, 6] * 2 + [3, 5, 2] and len(tokens) == lengths.sum()
    images = F.normalize(torch.randn(4, 7, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    alone, all_of_them = late_interaction(images, *own), late_interaction(images, tokens, lengths)
    for n in range(13):
        torch.testing.assert_close(all_of_them.i2t[:, n], alone.i2t[:, n % 5])


def test_gradients_of_gathered_texts_are_computed_and_own_ones_reach_the_tower() -> None:
    own = texts()
    tokens, lengths = gathered_texts(own, 12)
    images = torch.randn(2, 7, 8)
    tokens.retain_grad()
    late_interaction(images, tokens, lengths).i2t.sum().backward()
    assert tokens.grad is not None and (tokens.grad[len(own.tokens) :].abs().sum(1) > 0).any()
    assert own.tokens.grad is not None and torch.equal(own.tokens.grad, tokens.grad[: len(own.tokens)])


@pytest.mark.parametrize("count", [5, 7, 10, 23])
def test_gathered_vectors_are_as_many_as_asked(count: int) -> None:
    own = torch.randn(5, 3)
    rows = gathered_rows(own, count)
    assert torch.equal(rows, own[torch.arange(count) % 5])


def test_a_quarter_of_the_tokens_is_scored_where_the_row_says_so() -> None:
    row = resolve("experiment=demo_efficiency", "token_keep_ratio=0.25", "token_keep_minimum=1")
    image = F.normalize(torch.randn(5, 36, 8), dim=-1)
    kept_image, kept_text = kept_tokens(row, image, texts())
    assert kept_image.shape == (5, 9, 8) and kept_text.lengths.sum() == len(kept_text.tokens) < len(texts().tokens)
    whole = resolve("experiment=demo_efficiency")
    assert kept_tokens(whole, image, texts())[0] is image


def test_fewer_texts_than_are_there_are_refused() -> None:
    row, ranks = resolve("experiment=demo_efficiency"), SimpleNamespace(world_size=2)
    with pytest.raises(UserError, match=r"gathered=64: .* the 64 texts"):
        Step(row, Efficiency("s", "o", gathered=64), ranks)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_rows_are_measured_in_one_start_of_two_ranks(tmp_path: Path) -> None:
    study = yaml.safe_load((ROOT / "workflow/config/demo.yaml").read_text())
    study["efficiency"] = {name: study["efficiency"][name] for name in ("orig", "late_64_bf16_25")}
    # the demo's own model: tests/workflow/test_card.py
    study["efficiency_train"]["overrides"] = ["model=tiny"]
    study["runs"]["clip"]["overrides"] = ["model.interaction=pooled"]
    (tmp_path / "study.json").write_text(json.dumps(study))
    command = ["-m", "filip.study.efficiency", f"study={tmp_path / 'study.json'}", f"out={tmp_path / 'out'}"]
    ranks = Ranks(2, [*command, "gathered=256", "steps=3", "warmup=1"], tmp_path / "log")
    assert ranks.wait() == [0, 0], ranks.text()[-3000:]
    for name, interaction, kept in (("orig", "pooled", 1.0), ("late_64_bf16_25", "token_wise", 0.25)):
        result = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert result["config"]["model"]["interaction"] == interaction
        assert result["config"]["token_keep_ratio"] == kept
        assert (result["world_size"], result["pairs_per_rank"], result["gathered_texts"]) == (2, 32, 256)
        low, high = result["seconds_quartiles"]
        assert 0 < low <= result["seconds_per_iteration"] <= high and result["steps"] == 3
        assert result["peak_memory_mb"] > 0
