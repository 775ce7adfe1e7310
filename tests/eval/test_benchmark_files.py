"""Selection and long texts: every card in the files of its repository, through its real loader."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from filip.eval.cards import load_card
from filip.eval.encode_set import Context
from filip.eval.measures import as_text, measures
from filip.eval.protocols import NoSettings
from filip.eval.protocols.retrieval import RetrievalSettings
from filip.eval.protocols.retrieval import run as retrieval
from filip.eval.protocols.selection import chosen
from filip.eval.protocols.selection import run as select
from filip.eval.scorer import RANKINGS, PooledScorer
from tests.eval.benchmark_files import LONG, SELECTION, Reader, write_json, write_long


@pytest.mark.parametrize("name", SELECTION)
def test_every_selection_card_through_its_loader(name: str, tmp_path: Path) -> None:
    n = SELECTION[name](tmp_path, name)
    record: dict[str, Any] = {}
    result = select(Reader(), load_card(name), NoSettings(), Context(str(tmp_path), batch_size=3), record)  # type: ignore[arg-type]
    assert result["n"] == n and {result[by]["value"] for by in RANKINGS} == {1}
    chance = {"sugar_crepe_pp": 1 / 3, "aro_coco": 1 / 5, "aro_flickr": 1 / 5, "fg_ovd": 1 / 11}
    expected = next((value for prefix, value in chance.items() if name.startswith(prefix)), 1 / 2)
    assert result["chance"] == pytest.approx(expected)
    assert len(record[name].key) == n
    if name == "aro_relation":
        assert result["by_category"]["of"]["on"] == {"n": 4, "image": 1, "text": 1, "mean": 1}
    if name == "half_truths_coco":
        assert set(result["by_category"]["of"]) == {"entity", "relation"}
    table = as_text(measures({"protocol": "selection", "model": "m", "benchmarks": {name: result}}))
    assert ("those pool features inside the box" in table) == name.startswith("fg_ovd")
    assert ("how to make the pairs, and no list" in table) == (name == "half_truths_coco")


def test_chosen_is_the_mean_over_the_orders_of_equal_scores() -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        scores, truths = generator.integers(0, 3, 4).tolist(), int(generator.integers(1, 4))
        orders = [
            o for o in itertools.permutations(range(4)) if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))
        ]
        right = [set(order[:truths]) == set(range(truths)) for order in orders]
        assert chosen(scores, truths) == pytest.approx(np.mean(right))
    assert chosen([float("nan"), 0.0]) == 0


class Noisy(Reader):
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, None]:
        numbers = [int(text.split()[-1]) for text in texts]
        mixed = [torch.randn(1000, generator=torch.Generator().manual_seed(n)) for n in numbers]
        return torch.nn.functional.normalize(torch.stack(mixed), dim=-1), None


def evaluate_scores(scores: np.ndarray, categories: Sequence[str], true: int, least: int = 1) -> dict[str, Any]:
    """Compute what ``evaluate_scores`` does for the data sets of ARO (mertyg/vision-language-models-are-bows,
    ``dataset_zoo/aro_datasets.py``): accuracy, and that of each category with ``least`` rows.

    scores: [rows, 1, captions], the true caption at ``true``.
    """
    right = scores.squeeze(1).argmax(-1) == true
    names = np.asarray(categories)
    of = {name: right[names == name].mean() for name in np.unique(names) if (names == name).sum() >= least}
    return {"accuracy": right.mean(), "of": of}


@pytest.mark.parametrize("name", ["aro_relation", "aro_attribution"])
def test_aro_s_own_evaluation_of_our_scores_gives_our_numbers(name: str, tmp_path: Path) -> None:
    """Their captions are the false one and then the true one; attributes count from 25 rows on."""
    pairs = [["red", "old"]] * 26 + [["wet", "tall"]] * 25 + [["blue", "new"]] * 9 + [["sitting", "by"]] * 7
    SELECTION[name](tmp_path, name)
    file = tmp_path / "aro" / f"visual_genome_{name.removeprefix('aro_')}.json"
    row = json.loads(file.read_text())[0]
    rows = []
    for i, pair in enumerate(pairs):
        about = {"relation_name": " ".join(pair), "attributes": pair}
        captions = {"true_caption": f"a {7 * i}", "false_caption": f"a {7 * i + 500}"}
        rows.append({**row, **about, **captions, "image_path": f"{i % 4}.jpg"})
    write_json(file, rows)
    scorer = PooledScorer(Noisy())  # type: ignore[arg-type]
    ours = select(scorer.encoder, load_card(name), NoSettings(), Context(str(tmp_path)), {})

    images = torch.eye(1000)[[i % 4 for i in range(len(rows))]]
    texts = [scorer.encode_texts([row[key] for row in rows]).values for key in ("false_caption", "true_caption")]
    scores = torch.stack([(images * t).sum(1) for t in texts], 1)[:, None].numpy()
    least = 25 if name == "aro_attribution" else 1
    theirs = evaluate_scores(scores, [" ".join(pair) for pair in pairs], true=1, least=least)
    assert ours["image"]["value"] == pytest.approx(theirs["accuracy"]) and 0 < theirs["accuracy"] < 1
    counted = theirs["of"]
    if name == "aro_relation":  # what their notebook does with its list of symmetric relations
        counted = {relation: value for relation, value in counted.items() if relation != "sitting by"}
    mean = np.mean(list(counted.values()))
    assert ours["by_category"]["mean"]["image"] == pytest.approx(mean)
    assert ours["by_category"]["categories"] == len(counted) == (2 if least == 25 else 3)
    of = sorted(result["image"] for result in ours["by_category"]["of"].values() if result["n"] >= least)
    assert of == pytest.approx(sorted(theirs["of"].values()))


@pytest.mark.parametrize("name", LONG)
def test_every_long_text_card_through_its_loader_and_what_is_cut_is_counted(name: str, tmp_path: Path) -> None:
    write_long(tmp_path, name)
    result = retrieval(Reader(), load_card(name), RetrievalSettings(), Context(str(tmp_path)), {})  # type: ignore[arg-type]
    assert (result["images"], result["captions"]) == (5, 5)
    assert result["i2t"]["r1"] == result["t2i"]["r1"] == 1
    assert result["cut_captions"] == 2  # cut at 8 tokens: words and two
    assert f"of 5 captions are longer than the model's {result['cut_at']} tokens" in result["cut_note"]
