from pathlib import Path

import pytest
import yaml

from filip.eval.prompts import load_ensemble, load_retrieval_prompts

EVAL = Path(__file__).parents[2] / "eval"
PROMPTS = EVAL / "prompts.yaml"
CLIP = EVAL / "prompts_clip.yaml"


def ensembles(path: Path) -> list[str]:
    entries = yaml.safe_load(path.read_text())
    return [key for key in entries if key not in ("retrieval", "alignment")]


@pytest.mark.parametrize(("path", "key"), [(p, k) for p in (PROMPTS, CLIP) for k in ensembles(p)])
def test_every_ensemble_has_as_many_different_prompts_as_it_says(path, key):
    prompts = load_ensemble(path, key)
    texts = {prompt.fill("tulip") for prompt in prompts}
    repeated = 2 if key == "imagenet_zh" else 0  # as Wukong's list has it
    assert len(texts) + repeated == len(prompts) == yaml.safe_load(path.read_text())[key]["count"]
    for text in texts:
        assert "tulip" in text and ".." not in text and "  " not in text and " ." not in text and ",," not in text


def test_prompts_read_as_the_paper_prints_them():
    cars = [p.fill("Audi TT") for p in load_ensemble(PROMPTS, "stanford_cars")]
    assert "a photo of a Audi TT, a type of car. I like it." in cars
    assert "a photo of a cat." in [p.fill("cat") for p in load_ensemble(PROMPTS, "cifar10")]
    assert "a photo of a cat. It's cute." in [p.fill("cat") for p in load_ensemble(PROMPTS, "cifar10")]
    # No comma between label and description here.
    assert "itap of a banded texture." in [p.fill("banded") for p in load_ensemble(PROMPTS, "dtd")]
    assert "a photo of a river, an example of aerial or satellite images. I like it." in [
        p.fill("river") for p in load_ensemble(PROMPTS, "eurosat")
    ]


def test_retrieval_prompts():
    i2t, t2i = load_retrieval_prompts(PROMPTS, "flickr30k")
    assert i2t.fill("two dogs run") == "a good photo of the two dogs run. I hate it."
    assert t2i.fill("two dogs run .") == "a good photo of two dogs run."  # one full stop, not two
    # as it stands
    assert load_retrieval_prompts(PROMPTS, "mscoco")[1].fill("two dogs run.") == "two dogs run."
    assert load_retrieval_prompts(PROMPTS, None)[0].fill(" A caption . ") == " A caption . "
