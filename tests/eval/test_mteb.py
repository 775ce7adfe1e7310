"""An exported model in a task of mteb, as docs/evaluation.md shows it: its recall is ours."""

import json
from pathlib import Path
from typing import Any

import pytest

from filip.eval.formats.webdataset import WebdatasetFolder
from filip.export.hf_folder import write_multi_vector
from filip.runs.source import read_source
from tests.eval.miniature import run_protocol, write_model, write_webdataset


def test_a_retrieval_of_mteb_finds_what_ours_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mteb = pytest.importorskip("mteb")
    from mteb.models.sentence_transformer_wrapper import MultiVectorWrapper

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = write_model(tmp_path / "m.safetensors", seed=3)
    captions = [[f"a {colour} {thing}"] for colour in ("red", "blue", "pale") for thing in ["cat", "dog", "pear"]]
    write_webdataset(tmp_path / "data" / "demo_fluent", None, captions)
    run_protocol(
        "retrieval",
        [f"model={file}", f"root={tmp_path / 'data'}", "data=[demo_fluent]", f"out={tmp_path / 'out.json'}"],
    )
    ours = json.loads((tmp_path / "out.json").read_text())["benchmarks"]["demo_fluent"]["t2i"]

    write_multi_vector(read_source(file), str(tmp_path / "exported"))
    model = MultiVectorWrapper(str(tmp_path / "exported"), trust_remote_code=True, device="cpu")
    model.mteb_model_meta.modalities = ["image", "text"]
    task = _task(WebdatasetFolder(tmp_path / "data" / "demo_fluent"))
    found = mteb.evaluate(model, [task], cache=None).task_results[0].scores["test"][0]
    assert [found[f"hit_rate_at_{k}"] for k in (1, 5)] == pytest.approx([ours["r1"], ours["r5"]], abs=1e-5)
    assert 0 < ours["r5"] < 1


def _task(data: WebdatasetFolder) -> Any:
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    class Miniature(AbsTaskRetrieval):
        """Captions that look for their image."""

        metadata = TaskMetadata(
            type="Any2AnyRetrieval",
            name="Miniature",
            description="a test",
            reference=None,
            dataset={"path": "none/none", "revision": "1"},
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1",
            category="t2i",
            modalities=["image", "text"],
        )

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            samples = [data[i] for i in range(len(data))]
            queries = {"id": [f"q{s.key}" for s in samples], "text": [s.captions[0] for s in samples]}
            corpus = {"id": [s.key for s in samples], "image": [s.image for s in samples]}
            relevant = {f"q{s.key}": {s.key: 1} for s in samples}
            split = RetrievalSplitData(
                queries=Dataset.from_dict(queries),
                corpus=Dataset.from_dict(corpus),
                relevant_docs=relevant,
                top_ranked=None,
            )
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Miniature()
