"""The evaluation commands as a user types them: results in the agreed form, mistakes in one plain sentence."""

from pathlib import Path

import pytest
import torch
import yaml

from filip.eval.formats.webdataset import WebdatasetFolder
from filip.eval.outcomes import read_outcomes
from filip.eval.scorer import load_scorer
from tests.eval.miniature import run_protocol, tiny_config, write_model, write_webdataset

EVAL = Path(__file__).parents[2] / "eval"


@pytest.fixture
def root(tmp_path) -> Path:
    write_webdataset(tmp_path / "data" / "demo_food", [f"dish {i}" for i in range(8)], [i % 8 for i in range(24)])
    write_webdataset(tmp_path / "data" / "demo_skin_tone", ["light", "dark"], [0, 1, 0, 1])
    write_webdataset(tmp_path / "data" / "demo_fluent", None, [[f"text {i}"] for i in range(24)])
    return tmp_path


def arguments(root: Path, cards: list[str], model: str) -> list[str]:
    listed = ",".join(str(EVAL / f"{name}.yaml") for name in cards)
    prompts = EVAL / "prompts.yaml"
    return [f"model={model}", f"root={root / 'data'}", f"data=[{listed}]", f"prompts={prompts}", f"out={root / 'out'}"]


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_zero_shot(root, interaction):
    model = write_model(root / "late.safetensors", interaction)
    result = run_protocol("zero_shot", arguments(root, ["demo_food", "demo_skin_tone"], model))
    assert (result["run"], result["model"]) == ("late", model)
    assert result["scorer"] == ("token-wise" if interaction == "token_wise" else "pooled")
    food, tone = result["benchmarks"]["demo_food"], result["benchmarks"]["demo_skin_tone"]
    assert {"metric", "value", "top1", "top5", "mean_per_class", "chance", "n", "classes", "ci95", "prompts"} <= set(
        food
    )
    assert (food["n"], food["classes"], food["chance"], food["prompts"]) == (24, 8, 1 / 8, 2)
    assert food["value"] == food["top1"] <= food["top5"] <= 1
    assert food["ci95"][0] <= food["value"] <= food["ci95"][1]
    assert tone["top5"] is None and tone["chance"] == 0.5


@pytest.mark.parametrize(("texts_by", "images_by"), [("image", "text"), ("text", "image"), ("mean", "mean")])
def test_each_direction_is_ranked_by_the_similarity_that_was_asked_for(root, texts_by, images_by):
    """The ranks equal the definition's, pair by pair in float64, and a sort."""
    model = write_model(root / "m.safetensors", seed=3)
    options = [f"retrieval.rank_texts_by={texts_by}", f"retrieval.rank_images_by={images_by}"]
    given = [*arguments(root, ["demo_fluent"], model), *options]
    result = run_protocol("retrieval", given)["benchmarks"]["demo_fluent"]
    scorer = load_scorer(model)
    data = WebdatasetFolder(root / "data" / "demo_fluent")
    images = scorer.encode_images(torch.stack([scorer.transform(data[i].image) for i in range(24)])).double()
    texts = [scorer.encode_texts([data[i].captions[0]]).values.double() for i in range(24)]
    products = [[image @ text.T for text in texts] for image in images]
    s_image = torch.tensor([[p.amax(1).mean() for p in row] for row in products])
    s_text = torch.tensor([[p.amax(0).mean() for p in row] for row in products])
    by = {"image": s_image, "text": s_text, "mean": (s_image + s_text) / 2}
    for k in (1, 5, 10):
        own = torch.arange(24)
        texts_found = (by[texts_by].topk(k, dim=1).indices == own[:, None]).any(1).double().mean()
        images_found = (by[images_by].topk(k, dim=0).indices == own[None]).any(0).double().mean()
        assert result["i2t"][f"r{k}"] == pytest.approx(float(texts_found))
        assert result["t2i"][f"r{k}"] == pytest.approx(float(images_found))
    for name, scores in by.items():  # the others are among the numbers, too
        first = (scores.argmax(1) == own).double().mean(), (scores.argmax(0) == own).double().mean()
        assert [result["by"][name][way]["r1"] for way in ("i2t", "t2i")] == pytest.approx([float(f) for f in first])
    order = [by[name].argsort(1) for name in ("image", "text")]
    assert not torch.equal(*order)  # else the test could not tell them apart


def test_outcomes_of_every_image_are_kept_and_their_mean_is_the_number(root):
    model = write_model(root / "m.safetensors")
    tasks = run_protocol("zero_shot", arguments(root, ["demo_food", "demo_skin_tone"], model))["benchmarks"]
    result = {name: read_outcomes(root / f"out/zero_shot/{name}.json")[name] for name in tasks}
    assert list(result) == ["demo_food", "demo_skin_tone"] and set(result["demo_food"].values) == {"top1", "top5"}
    assert list(result["demo_food"].key) == [f"s{i:07d}" for i in range(24)]
    for name, task in tasks.items():
        assert result[name].values["top1"].mean() == pytest.approx(task["top1"])
    write_webdataset(root / "data" / "demo_fluent", None, [[f"text {i}", "two"] for i in range(12)], masks=True)
    numbers = run_protocol("retrieval", arguments(root, ["demo_fluent"], model))["benchmarks"]
    result = read_outcomes(root / "out/retrieval/demo_fluent.json")
    for way, queries in (("i2t", 12), ("t2i", 24)):
        outcomes = result[f"demo_fluent.{way}"]
        assert len(outcomes.key) == len(set(outcomes.key)) == queries and len(set(outcomes.cluster)) == 12
        for rank, values in outcomes.values.items():
            assert values.mean() == pytest.approx(numbers["demo_fluent"][way][rank])
            low, high = numbers["demo_fluent"]["ci95"][way][rank]
            assert low <= values.mean() <= high


def test_two_drawings_of_a_concept_count_as_one(root):
    """Each image is there twice under one code: the interval is that of half as many images."""
    model, folder = write_model(root / "m.safetensors"), root / "data" / "demo_food"
    dishes = [f"dish {i}" for i in range(8)]
    results = []
    for codes in ([f"U{i}" for i in range(24)], [f"U{i // 2}" for i in range(24)]):
        write_webdataset(folder, dishes, [i % 8 for i in range(24)], codes=codes)
        results.append(run_protocol("zero_shot", arguments(root, ["demo_food"], model))["benchmarks"]["demo_food"])
        assert list(read_outcomes(root / "out/zero_shot/demo_food.json")["demo_food"].cluster) == codes
    assert results[0]["top1"] == results[1]["top1"] and results[0]["ci95"] != results[1]["ci95"]


def test_a_fine_tuned_model_ranks_bare_captions_of_its_own_set_only(root):
    card = yaml.safe_load((EVAL / "demo_fluent.yaml").read_text())
    (root / "card.yaml").write_text(yaml.safe_dump({**card, "prompts": "flickr30k", "fine_tuned_on": ["flickr30k"]}))
    given = arguments(root, ["demo_fluent"], write_model(root / "m.safetensors"))
    given = [a for a in given if not a.startswith("data=")] + [f"data=[{root / 'card.yaml'}]"]
    for source, prompts in (
        ("", ["a good photo of the {c}. I hate it.", "a good photo of {c}."]),
        ("coco", ["a good photo of the {c}. I hate it.", "a good photo of {c}."]),
        ("flickr30k", ["{c}", "{c}"]),
    ):
        result = run_protocol("retrieval", [*given, f"retrieval.fine_tuned_on={source}"])
        assert result["benchmarks"]["demo_fluent"]["prompts"] == prompts


def test_a_diverged_model_scores_chance_and_says_so(root):
    from filip.models import build_model, save_model

    model = build_model(tiny_config())
    with torch.no_grad():
        model.image.projection.weight.fill_(float("nan"))
    save_model(root / "nan.safetensors", model, {})
    result = run_protocol("zero_shot", arguments(root, ["demo_food"], str(root / "nan.safetensors")))
    food = result["benchmarks"]["demo_food"]
    assert food["not_finite"] == 24 and food["top1"] == pytest.approx(1 / 8)
