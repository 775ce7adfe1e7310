"""An exported model in a task of mteb, as docs/evaluation.md shows it: its recall is ours."""

import json
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from filip.eval.formats.webdataset import WebdatasetFolder
from filip.eval.scorer import load_scorer
from filip.export.hf_folder import write_multi_vector
from filip.runs.source import read_source
from tests.eval.miniature import picture, run_protocol, write_model, write_webdataset


@pytest.mark.system
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
    result = mteb.evaluate(model, [task], cache=None).task_results[0].scores["test"][0]
    assert [result[f"hit_rate_at_{k}"] for k in (1, 5)] == pytest.approx([ours["r1"], ours["r5"]], abs=1e-5)
    assert 0 < ours["r5"] < 1


@pytest.mark.system
def test_the_patch_scores_pairs_by_a_models_own_similarity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.models.sentence_transformer_wrapper import MultiVectorWrapper
    from mteb.timing import TimingStack

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    evaluator = Path("mteb/_evaluators/image/imagetext_pairclassification_evaluator.py")
    (tmp_path / evaluator).parent.mkdir(parents=True)
    shutil.copy(Path(mteb.__file__).parent.parent / evaluator, tmp_path / evaluator)
    patch = Path(__file__).with_name("mteb.patch")
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)

    write_multi_vector(read_source(write_model(tmp_path / "m.safetensors")), str(tmp_path / "exported"))
    model = MultiVectorWrapper(str(tmp_path / "exported"), trust_remote_code=True, device="cpu")
    model.mteb_model_meta.modalities = ["image", "text"]
    rows = {f"image_{n}": [picture(2 * i + n) for i in range(3)] for n in range(2)}
    rows |= {f"text_{n}": [f"{i} {'cats' * n} dogs" for i in range(3)] for n in range(2)}
    own = {"images_column_names": ["image_0", "image_1"], "texts_column_names": ["text_0", "text_1"]}
    own |= {"num_images_per_sample": 2, "num_texts_per_sample": 2, "hf_split": "test", "hf_subset": "default"}
    metadata = _task(None).metadata
    scores = {}
    for file in (Path(mteb.__file__).parent.parent / evaluator, tmp_path / evaluator):
        kind = runpy.run_path(str(file))["ImageTextPairClassificationEvaluator"]
        score = kind(Dataset.from_dict(rows), task_metadata=metadata, timer=TimingStack(), **own)
        try:
            scores[file] = score(model, encode_kwargs={"batch_size": 2})
        except AttributeError:
            scores[file] = None
    released, patched = scores.values()
    assert released is None  # when it scores them, the patch can go
    scorer = load_scorer(f"mv:{tmp_path / 'exported'}", trust_remote_code=True)
    for n, found in enumerate(patched):
        images = scorer.encode_images(torch.stack([scorer.transform(rows[f"image_{side}"][n]) for side in range(2)]))
        expected = scorer.similarity(images, scorer.encode_texts([rows[f"text_{side}"][n] for side in range(2)])).t2i
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def _task(data: WebdatasetFolder | None) -> Any:
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
            assert data is not None
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
