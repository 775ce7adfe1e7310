"""A study's data: sources that are built here, their stages, and when those are stale."""

from dataclasses import replace
from pathlib import Path

import yaml

from workflow.study import ROOT, WorkflowStudy


def test_only_a_source_whose_card_says_so_is_built_and_served_here(demo: dict) -> None:
    study = WorkflowStudy({**demo, "sources": ["demo", "cc3m"]})
    assert study.built_list("demo") == ["results/demo/corpus/list.parquet"] and study.built_list("cc3m") == []
    assert study.while_served("demo") == "python -m filip_demo.serving root=results/demo/corpus port=8765 -- "
    assert study.while_served("cc3m") == ""
    assert study.corpus_builder == "filip_demo.corpus"
    assert WorkflowStudy(yaml.safe_load((ROOT / "workflow/config/one_gpu.yaml").read_text())).corpus_builder is None


def test_a_study_s_parts_share_each_stage_but_the_download_from_a_server_of_its_own(demo: dict) -> None:
    assert WorkflowStudy(demo).parts("demo", "translate") == []
    study = WorkflowStudy({**demo, "data": {"parts": 2}, "sources": ["demo", "cc3m"]})
    folder = "results/demo/data/cc3m/parts/download"
    assert study.parts("cc3m", "download") == [f"{folder}/0-of-2", f"{folder}/1-of-2"]
    assert study.parts("demo", "download") == [] and len(study.parts("demo", "prepare")) == 2


def test_a_stage_is_stale_when_what_it_reads_of_a_card_changes_and_not_otherwise(demo: dict) -> None:
    study = WorkflowStudy(demo)
    stages = ("prepare", "text_rules", "download", "translate")
    before = {stage: study.settings("demo", stage) for stage in stages}
    card = study.source_cards["demo"]

    def stale() -> set[str]:
        return {stage for stage in stages if study.settings("demo", stage) != before[stage]}

    card.title, card.path = "another title", "elsewhere.yaml"
    assert stale() == set()
    card.text_rules.max_repeats += 1
    assert stale() == {"text_rules"}
    card.image_rules.min_side += 1
    assert stale() == {"text_rules", "download"}
    card.caption_column = "alt"
    assert stale() == {"prepare", "text_rules", "download"}


def test_ingest_is_stale_when_a_picture_changes(demo: dict, tmp_path: Path) -> None:
    card = {"images": str(tmp_path / "photos"), "built_by": None, "group_column": None}

    def state() -> str:
        study = WorkflowStudy(demo)
        study.source_cards["demo"] = replace(study.source_cards["demo"], **card)
        return study.images_state("demo")

    assert state() == "", "no images yet"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/captions.csv").write_text("path,caption\na.png,a cat\n")
    without = state()
    assert without == state() != ""
    (tmp_path / "photos/a.png").write_bytes(b"a")
    assert state() != without


def test_the_files_of_a_list_are_inputs(demo: dict, tmp_path: Path) -> None:
    study = WorkflowStudy(demo)
    assert study.list_input("demo") == study.built_list("demo")
    card = study.source_cards["demo"]
    card.built_by, card.list = None, str(tmp_path / "part-*.tsv")
    assert study.list_input("demo") == [], "the command says how to obtain it"
    for number in (1, 0):
        (tmp_path / f"part-{number}.tsv").touch()
    assert study.list_input("demo") == [str(tmp_path / f"part-{number}.tsv") for number in (0, 1)]
    assert f"{study.data_dir}/demo/funnel/prepare.json" in study.funnel_fragments()
    assert (study.data_threads, study.data_memory) == (2, "1GB")
    large = WorkflowStudy({**demo, "data": {"threads": 16, "memory": "32GB"}})
    assert (large.data_threads, large.data_memory) == (16, "32GB")
