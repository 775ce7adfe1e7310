"""A CLIP scored by us without any option and by CLIP_benchmark with its own prompts: equal to the last image."""

import json
from importlib.resources import files

import pytest
from sklearn.metrics import balanced_accuracy_score
from torch.utils.data import DataLoader

from tests.eval.miniature import ARCHITECTURE, run_protocol, write_open_clip, write_webdataset

ANIMALS = ["cat", "dog", "brown bear", "sea horse", "owl", "hare", "fox"]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.system
def test_open_clip_scored_by_us_and_by_clip_benchmark(tmp_path):
    weights = write_open_clip(tmp_path)
    from clip_benchmark.datasets.builder import build_wds_dataset, get_dataset_collate_fn
    from clip_benchmark.metrics import zeroshot_classification as classification
    from clip_benchmark.metrics import zeroshot_retrieval as retrieval
    from open_clip import create_model_and_transforms, get_tokenizer

    labels = [(3 * i + i // 5) % 10 for i in range(36)]
    write_webdataset(tmp_path / "wds_vtab-cifar10", CIFAR10, labels)
    captions = [[f"picture {i} of {ANIMALS[i % 7]}", f"number {i}", "more"][: 1 + i % 2] for i in range(36)]
    write_webdataset(tmp_path / "wds_mscoco_captions", None, captions)
    templates = files("clip_benchmark") / "datasets" / "en_zeroshot_classification_templates.json"
    templates = json.loads(templates.read_text())["cifar10"]  # CLIP's own eighteen

    model, _, transform = create_model_and_transforms(ARCHITECTURE, pretrained=weights)
    model.eval()
    tokenizer = get_tokenizer(ARCHITECTURE)
    data = build_wds_dataset("cifar10", transform, "test", str(tmp_path / "wds_vtab-cifar10"))
    loader = DataLoader(data.batched(16), batch_size=None)
    loader.dataset.classes = data.classes
    classifier = classification.zero_shot_classifier(model, tokenizer, data.classes, templates, "cpu", amp=False)
    logits, target = classification.run_classification(model, classifier, loader, "cpu", amp=False)
    # Its `accuracy` fails under NumPy 2.4 (float() of a one-element array); these are its two lines without that.
    predicted = logits.topk(5, 1, True, True)[1]
    correct = predicted.eq(target.view(-1, 1))
    theirs = {
        "acc1": float(correct[:, :1].sum()) / len(target),
        "acc5": float(correct.sum()) / len(target),
        "mean_per_class_recall": balanced_accuracy_score(target, logits.argmax(1)),
    }
    data = build_wds_dataset("mscoco_captions", transform, "test", str(tmp_path / "wds_mscoco_captions"))
    loader = DataLoader(data.batched(16, collation_fn=get_dataset_collate_fn("mscoco_captions")), batch_size=None)
    recalls = retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])

    common = [f"model=open_clip:{ARCHITECTURE}:{weights}:gelu", f"root={tmp_path}", f"out={tmp_path / 'out'}"]
    cifar10 = "data=[cifar10]"
    result = run_protocol("zero_shot", [*common, cifar10])  # a CLIP's own protocol is the default
    assert result["settings"] == {"prompts": "eval/prompts_clip.yaml", "ensemble": "embedding"}
    ours = result["benchmarks"]["cifar10"]
    assert ours["n"] == 36
    assert ours["top1"] == pytest.approx(theirs["acc1"], abs=1e-9)
    assert ours["top5"] == pytest.approx(theirs["acc5"], abs=1e-9)
    assert ours["mean_per_class"] == pytest.approx(theirs["mean_per_class_recall"], abs=1e-9)
    assert 0 < ours["top1"] < 1

    result = run_protocol("retrieval", [*common, "data=[mscoco]"])  # captions alone, not in FILIP's prompts
    ours = result["benchmarks"]["mscoco"]
    assert (ours["images"], ours["captions"]) == (36, 54)
    for k in (1, 5, 10):  # their numbers went through float32
        assert ours["i2t"][f"r{k}"] == pytest.approx(recalls[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert ours["t2i"][f"r{k}"] == pytest.approx(recalls[f"image_retrieval_recall@{k}"], abs=1e-6)
    assert 0 < ours["i2t"]["r5"] < 1

    # where images share their captions, theirs depends on the order of the data
    write_webdataset(tmp_path / "wds_flickr30k", None, [[f"a {ANIMALS[i % 7]}", f"number {i}"] for i in range(36)])
    data = build_wds_dataset("flickr30k", transform, "test", str(tmp_path / "wds_flickr30k"))
    loader = DataLoader(data.batched(36, collation_fn=get_dataset_collate_fn("flickr30k")), batch_size=None)
    recalls = retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    found = {}
    for ties in ("first", "expected"):
        result = run_protocol("retrieval", [*common, "data=[flickr30k]", f"retrieval.ties={ties}"])
        found[ties] = result["benchmarks"]["flickr30k"]
        assert "36 of 72 captions are those of other images" in found[ties]["note"]
    assert found["first"]["i2t"] == pytest.approx({f"r{k}": recalls[f"text_retrieval_recall@{k}"] for k in (1, 5, 10)})
    assert found["first"]["i2t"] != found["expected"]["i2t"]

    probed = run_protocol("linear_probe", [*common, cifar10])["benchmarks"]["cifar10"]
    assert probed["n"] == 36 and "cross-validation" in probed["protocol"]
