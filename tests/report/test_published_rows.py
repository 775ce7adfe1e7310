"""Published rows: beside ours where a benchmark's card says what the paper calls it, and never in place of ours."""

from pathlib import Path

import pytest
import yaml

from tests.report.results import EVAL, cells, changed, tables_of, write


def test_published_rows_never_fill_ours(folder):
    tables = tables_of(folder)
    for name in ("zero_shot", "retrieval", "component_ablation"):
        assert all(row.kind != "paper" for row in tables[name].rows)  # other benchmarks than the paper's
    efficiency = tables["efficiency_ablation"]
    paper = [row for row in efficiency.rows if row.kind == "paper"]
    assert len(paper) == 6
    assert all(row.cells["accuracy"].value is None for row in paper)
    late = next(row for row in paper if row.label == "late*")
    assert late.cells["time_ratio"].value == pytest.approx(1.39 / 1.31)
    assert late.cells["memory_ratio"].value == pytest.approx(16100 / 14300)


@pytest.mark.parametrize("stated", [True, False])
def test_it_is_the_card_that_says_which_published_numbers_are_of_its_benchmark(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    """A card of another name has the paper's rows if it says so, and one of the paper's name that does not has none."""
    imagenet, mscoco = ("my_imagenet", "my_mscoco") if stated else ("imagenet", "mscoco")
    for name in (imagenet, mscoco):  # a card for one's own copy
        whose = name.removeprefix("my_")
        card = yaml.safe_load((EVAL / f"{whose}.yaml").read_text())
        card |= {"name": name, "published": whose if stated else None}
        write(tmp_path / "eval" / f"{name}.yaml", yaml.safe_dump(card))
    monkeypatch.chdir(tmp_path)
    study = changed(
        folder,
        "renamed",
        eval={"root": "x", "zero_shot": [imagenet], "retrieval": [mscoco]},
        runs={"filip": {"label": "ours"}},
        fine_tune={},
        efficiency={"orig": {"label": "orig"}},
        tables={name: ["filip"] for name in ("zero_shot", "retrieval", "component_ablation")},
    )
    tables = tables_of(folder, study)
    paper = {name: {r.label: r.cells for r in tables[name].rows if r.kind == "paper"} for name in tables}
    if not stated:
        assert not any(paper[name] for name in ("zero_shot", "retrieval", "component_ablation"))
        assert all(cells["accuracy"].value is None for cells in paper["efficiency_ablation"].values())
        return
    assert paper["zero_shot"]["CLIP-ViT-B/32"]["my_imagenet"].value == pytest.approx(0.632)
    assert paper["retrieval"]["CLIP"]["my_mscoco_t2i_r10"].value == pytest.approx(0.722)
    ablation = paper["component_ablation"]["FILIP-base"]
    assert ablation["my_mscoco_i2t_r5"].value == pytest.approx(0.601)
    assert ablation["my_imagenet_top1"].value == pytest.approx(0.378)
    assert paper["efficiency_ablation"]["late*"]["imagenet_top1"].value == pytest.approx(0.343)


def test_the_paper_s_average_stands_only_beside_all_twelve_of_its_benchmarks(folder: Path) -> None:
    twelve = yaml.safe_load((EVAL / "paper_tables.yaml").read_text())["zero_shot_classification"]["columns"]
    for names, average in ((twelve, 0.783), (twelve[1:], None)):
        study = changed(folder, "twelve", eval={"root": "x", "zero_shot": names, "retrieval": ["demo_fluent"]})
        assert cells(tables_of(folder, study)["zero_shot"], "FILIP-large-ViT-L/14")["average"].value == (
            average if average is None else pytest.approx(average)
        )


def test_the_authors_later_models_stand_beside_chinese_cards(folder: Path) -> None:
    cards = {"zero_shot": ["imagenet_zh", "demo_animals"], "retrieval": ["flickr30k_zh", "coco_cn"]}
    tables = tables_of(folder, changed(folder, "chinese", eval={"root": "x", **cards}))
    assert cells(tables["zero_shot"], "FILIP_ViT-B")["imagenet_zh"].value == pytest.approx(0.381)
    found = cells(tables["retrieval"], "Wukong_ViT-L")
    assert [found["flickr30k_zh_t2i_r1"].value, found["coco_cn_i2t_r10"].value] == pytest.approx([0.517, 0.906])
    assert {row.label for row in tables["zero_shot"].rows if row.kind == "paper"} >= {"CLIP_ViT-L", "Wukong_ViT-B"}
