"""Every card through its real loaders, on miniature data in the published formats."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import clip_benchmark
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from filip.common.errors import UserError
from filip.eval.cards import BenchmarkCard, load_card, match_classes
from filip.eval.encode_set import Context, size_note
from filip.eval.formats import open_set
from filip.eval.prompts import card_ensemble, load_ensemble, load_retrieval_prompts
from filip.eval.protocols.retrieval import RetrievalSettings
from filip.eval.protocols.retrieval import run as retrieval
from filip.eval.protocols.zero_shot import ZeroShotSettings
from filip.eval.protocols.zero_shot import run as zero_shot
from tests.eval.benchmark_files import Reader, shown
from tests.eval.miniature import write_split
from tests.support.shards import encoded

ROOT = Path(__file__).parents[2]
EVAL = ROOT / "eval"
PROMPTS = EVAL / "prompts.yaml"
CARDS = sorted(p.stem for p in EVAL.glob("*.yaml") if "kind" in yaml.safe_load(p.read_text()))
# name: (classes, images), as stated by the suites that the numbers are compared with
STATED = {
    "cifar10": (10, 10000),
    "cifar100": (100, 10000),
    "caltech101": (102, 6085),
    "stanford_cars": (196, 8041),
    "flowers102": (102, 6149),
    "food101": (101, 25250),
    "sun397": (397, 108754),
    "dtd": (47, 1880),
    "fgvc_aircraft": (100, 3333),
    "oxford_pets": (37, 3669),
    "eurosat": (10, 5400),
    "imagenet": (1000, 50000),
}
CLASSES = {name: classes for name, (classes, _) in STATED.items()}
SIZES = {name: size for name, (_, size) in STATED.items()} | {"flickr30k": 1000, "mscoco": 5000}


class Oracle(Reader):
    """A model that is always right: it reads an image's class from its colour, and knows every prompt."""

    def __init__(self, names: Sequence[str], prompts: dict[str, str]):
        self.names = names  # the true prompt name of colour i
        self.prompts = prompts  # prompt -> name
        rng = np.random.default_rng(0)
        self.vectors = {
            name: torch.tensor(rng.standard_normal(64), dtype=torch.float32) for name in dict.fromkeys(names)
        }

    def encode_images(self, pixels: Tensor) -> Tensor:
        vectors = torch.stack([self.vectors[self.names[int(p[0, 0, 0])]] for p in pixels])
        return torch.nn.functional.normalize(vectors, dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, None]:
        vectors = torch.stack([self.vectors[self.prompts[text]] for text in texts])
        return torch.nn.functional.normalize(vectors, dim=-1), None


def oracle(card: BenchmarkCard, raw: Sequence[str]) -> Oracle:
    """Make an oracle for images whose colour number is the position in ``raw``."""
    ensemble = load_ensemble(PROMPTS, str(card.prompts))
    assert card.classes is not None
    prompts = {p.fill(name): name for name in card.classes.values() for p in ensemble}
    return Oracle([card.classes[r] for r in raw], prompts)


@pytest.mark.parametrize("name", STATED)
def test_every_classification_card_through_the_webdataset_layout(name, tmp_path):
    """Exported copies list prompt names, in whatever order their exporter had."""
    card = load_card(EVAL / f"{name}.yaml")
    assert card.classes is not None and card.loader == "webdataset"
    raw = list(card.classes)
    order = np.random.default_rng(0).permutation(len(raw))
    folder = tmp_path / card.path
    members = []
    for i, which in enumerate(order):
        members += [(f"s{i:07d}.png", encoded(shown(int(which)))), (f"s{i:07d}.cls", str(i).encode())]
    write_split(folder / card.split, [members])
    names = [card.classes[raw[which]] for which in order]
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    settings = ZeroShotSettings("score")
    result = zero_shot(oracle(card, raw), card, settings, Context(str(tmp_path)), {})  # type: ignore[arg-type]
    ties = 4 * 0.5 if name == "imagenet" else 0
    assert result["top1"] == pytest.approx(1 - ties / CLASSES[name])


@pytest.mark.parametrize("name", ["flickr30k", "mscoco"])
@pytest.mark.parametrize("layout", ["webdataset", "captions"])
def test_retrieval_cards_through_both_layouts(name, layout, tmp_path):
    card = load_card(EVAL / f"{name}.yaml", layout)
    captions = [[f"caption {j} of picture {i} ." for j in range(5)] for i in range(12)]
    folder = tmp_path / card.path
    if layout == "webdataset":
        members = []
        for i, own in enumerate(captions):
            members += [(f"s{i:07d}.jpg", encoded(shown(i), "JPEG")), (f"s{i:07d}.txt", "\n".join(own).encode())]
        write_split(folder / "test", [members])
        (folder / "dataset_type.txt").write_text("retrieval")
    else:
        write_karpathy(folder, card.layout.options, captions)
    prompts = load_retrieval_prompts(PROMPTS, card.prompts)
    texts = {p.fill(c): str(i) for i, own in enumerate(captions) for c in own for p in prompts}
    model: Any = Oracle([str(i) for i in range(12)], texts)
    result = retrieval(model, card, RetrievalSettings(), Context(str(tmp_path)), {})
    assert (result["images"], result["captions"]) == (12, 60)
    assert result["i2t"] == result["t2i"] == {"r1": 1.0, "r5": 1.0, "r10": 1.0}
    assert result["chance"]["i2t"]["r1"] == pytest.approx(5 / 60)
    assert result["chance"]["t2i"]["r5"] == pytest.approx(5 / 12)


def write_karpathy(folder: Path, options: dict, captions: list[list[str]]) -> None:
    images = []
    for i, own in enumerate(captions):
        place = {"filepath": "val2014"} if "coco" in options["annotations"] else {}
        path = folder / options.get("images", "") / place.get("filepath", "") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown(i).save(path, "JPEG", quality=95)
        images.append({**place, "filename": f"{i}.jpg", "split": "test", "sentences": [{"raw": c} for c in own]})
    images.append({"filename": "gone.jpg", "filepath": "x", "split": "val", "sentences": []})
    (folder / options["annotations"]).write_text(json.dumps({"images": images, "dataset": "x"}))


def test_chinese_cards_read_english_copies_and_tables(tmp_path):
    card, english = load_card(EVAL / "imagenet_zh.yaml"), load_card(EVAL / "imagenet.yaml")
    assert card.classes is not None and english.classes is not None and len(card.classes) == 1000
    chinese, names = list(card.classes.values()), list(english.classes.values())
    of_package = Path(clip_benchmark.__file__).parent / "datasets"
    assert chinese == json.loads((of_package / "cn_classnames.json").read_text("utf-8"))["imagenet1k"]
    templates = json.loads((of_package / "cn_zeroshot_classification_templates.json").read_text("utf-8"))["imagenet1k"]
    assert [prompt.fill("{c}") for prompt in load_ensemble(PROMPTS, "imagenet_zh")] == templates
    assert match_classes(card, names) == match_classes(card, list(card.classes)) == chinese
    backwards = match_classes(card, list(card.classes)[::-1])
    assert backwards == chinese[::-1] and match_classes(card, chinese[::-1])[:5] == chinese[::-1][:5]
    with pytest.raises(UserError, match="differ"):  # two are called missile
        match_classes(card, names[::-1])
    for name in ("flickr8k_zh", "flickr30k_zh", "coco_cn"):
        card = load_card(EVAL / f"{name}.yaml")
        place, options = tmp_path / card.path, card.layout.options
        (place / options.get("images", ".")).mkdir(parents=True)
        for i in range(2):
            shown(i).save(place / options.get("images", ".") / f"{i}.jpg")
        rows = "image,caption\n0.jpg,一只猫\n0.jpg,红色的，猫\n1.jpg,海滩\n"
        (place / options["annotations"]).write_text(rows, encoding="utf-8")
        assert [one.captions for one in open_set(card, tmp_path)] == [["一只猫", "红色的，猫"], ["海滩"]]


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_whole(name):
    card = load_card(EVAL / f"{name}.yaml")
    assert card.name == name
    if name in SIZES:
        assert card.size == SIZES[name]
    if card.kind == "classification":
        assert card_ensemble(str(PROMPTS), card.prompts)
        if name in CLASSES:
            assert card.classes is not None and len(card.classes) == CLASSES[name]
            assert card.origin and card.homepage
            assert load_ensemble(EVAL / "prompts_clip.yaml", str(card.prompts))
    elif card.prompts:
        load_retrieval_prompts(PROMPTS, card.prompts)


@pytest.mark.parametrize(
    ("name", "images", "comparable"),
    [
        ("sun397", 108754, False),
        ("eurosat", 5400, False),
        ("caltech101", 6085, True),
        ("cifar10", 10000, True),
        ("cifar10", 9999, False),
    ],
)
def test_a_split_other_than_the_published_one_is_not_comparable(name, images, comparable):
    note = size_note(load_card(EVAL / f"{name}.yaml"), images)
    assert note is None if comparable else "not comparable" in note


def test_published_numbers_belong_to_cards():
    published = yaml.safe_load((EVAL / "paper_tables.yaml").read_text())
    columns = published["zero_shot_classification"]["columns"]
    assert set(columns) == set(CLASSES) == {load_card(EVAL / f"{n}.yaml").published for n in CLASSES}
    filip = published["zero_shot_classification"]["FILIP-large-ViT-L/14"]
    assert np.mean(filip["values"]) == pytest.approx(filip["average"], abs=0.06)


CARD = load_card(EVAL / "oxford_pets.yaml")


def test_classes_are_matched_by_name_not_by_order():
    assert CARD.classes is not None
    raw = list(CARD.classes)[::-1]
    assert match_classes(CARD, raw) == [CARD.classes[r] for r in raw]
    titles = [" ".join(part.title() for part in r.split("_")) for r in raw]  # as some copies have them
    assert match_classes(CARD, titles) == [CARD.classes[r] for r in raw]


def test_another_set_of_classes_stops_with_the_difference():
    assert CARD.classes is not None
    names = [*list(CARD.classes)[1:], "goldfish"]
    with pytest.raises(UserError, match=r"Only in the data set: goldfish\. Only in the card: Abyssinian\."):
        match_classes(CARD, names)
