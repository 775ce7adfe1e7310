"""The linear probe against scikit-learn called directly, with and without a training split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split

from filip.eval.benchmark import BenchmarkCard, BenchmarkLayout
from filip.eval.encode_set import Context
from filip.eval.encoders import load_encoder
from filip.eval.formats.webdataset import WebdatasetFolder
from filip.eval.own_data import cards_of
from filip.eval.protocols.linear_probe import SWEEP, LinearProbeSettings, _fit, log_probabilities
from filip.eval.protocols.linear_probe import run as probe
from tests.eval.benchmark_files import save
from tests.eval.miniature import run_protocol, write_model, write_webdataset

EVAL = Path(__file__).parents[2] / "eval"
NAMES = ["a", "b", "c"]


def run(tmp_path: Path, model: str) -> dict:
    argv = [f"model={model}", f"root={tmp_path}", f"data=[{EVAL / 'demo_food.yaml'}]", f"out={tmp_path / 'out'}"]
    argv.append("linear_probe.regularisation=1")
    return run_protocol("linear_probe", argv)["benchmarks"]["demo_food"]


def features(model: str, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean of the patch tokens before the projection, by the towers' own forward."""
    encoder = load_encoder(model)
    data = WebdatasetFolder(folder, split)
    rows = []
    for i in range(len(data)):
        tokens = encoder.model.image.trunk(encoder.transform(data[i].image).unsqueeze(0))  # type: ignore[attr-defined]
        rows.append(tokens[0, 1:].mean(0).detach().numpy())
    return np.stack(rows), np.array([data[i].label for i in range(len(data))])


def test_trained_on_the_training_split(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    folder = tmp_path / "demo_food"
    write_webdataset(folder, NAMES, [i % 3 for i in range(21)], split="train")
    write_webdataset(folder, NAMES, [(i // 2) % 3 for i in range(15)])
    result = run(tmp_path, model)
    fitted = LogisticRegression(max_iter=1000).fit(*features(model, folder, "train"))
    x, y = features(model, folder, "test")
    assert result["top1"] == pytest.approx(accuracy_score(y, fitted.predict(x)))
    assert result["protocol"] == "trained on 21 images of the training split, C = 1" and result["n"] == 15


def test_cross_validated_without_one(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    folder = tmp_path / "demo_food"
    write_webdataset(folder, NAMES, [i % 3 for i in range(24)])
    result = run(tmp_path, model)
    x, y = features(model, folder, "test")
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(LogisticRegression(max_iter=1000), x, y, cv=folds)
    assert result["top1"] == pytest.approx(accuracy_score(y, predicted))
    assert result["protocol"].startswith("5-fold cross-validation")


def test_the_penalty_is_the_one_that_is_best_on_images_held_out() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(40)
    features = torch.randn(120, 60, generator=generator)  # most of them noise
    features[:, :3] += 1.5 * torch.eye(3)[labels]
    fitted = _fit(features, labels, LinearProbeSettings())
    known, held_out = train_test_split(np.arange(120), test_size=0.2, random_state=0, stratify=labels)
    x, y = features.double().numpy(), labels.numpy()
    scores = {
        c: LogisticRegression(C=c, max_iter=5000).fit(x[known], y[known]).score(x[held_out], y[held_out]) for c in SWEEP
    }
    assert max(SWEEP, key=scores.__getitem__) == fitted.C and len(set(scores.values())) > 1


@pytest.mark.parametrize("classes", [2, 5])
def test_a_class_that_was_not_seen_has_no_probability(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    labels = 3 * torch.randint(0, classes, (150,), generator=generator)  # classes with gaps between them
    features = torch.randn(150, 8, generator=generator) + 0.3 * labels[:, None]
    fitted = _fit(features, labels, LinearProbeSettings(regularisation=0.1))
    result = log_probabilities(fitted, features, 3 * classes)
    torch.testing.assert_close(result[:, ::3].exp().sum(1), torch.ones(150, dtype=torch.float64))
    assert bool((result[:, 1] == -torch.inf).all())


@pytest.mark.parametrize(("given", "tested"), [("split", 6), ("remark", 18), ("folder", 18)])
def test_no_image_is_trained_and_tested_on(tmp_path: Path, given: str, tested: int) -> None:
    """A table without a column `split`, and a folder of classes alone, have nothing to train on."""
    rows = [f"image,label,{given}"]
    for n in range(18):
        save(tmp_path / "ab"[n % 2] / f"{n}.png", n)
        rows.append(f"{'ab'[n % 2]}/{n}.png,{'ab'[n % 2]},{'train' if n < 12 else 'validation'}")
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    card = BenchmarkCard("mine", "mine", "classification", "top1", BenchmarkLayout("imagefolder", "", "test"))
    if given != "folder":
        (card,) = cards_of(str(tmp_path / "rows.csv"))
    encoder = load_encoder(write_model(tmp_path / "m.safetensors"))
    result = probe(encoder, card, LinearProbeSettings(1.0), Context(str(tmp_path)), {})
    protocol = "trained on 12 images of the training" if tested < 18 else "5-fold cross-validation of the test"
    assert result["n"] == tested and protocol in result["protocol"]


def test_one_image_per_class_cannot_be_probed(tmp_path, capsys):
    write_webdataset(tmp_path / "demo_food", NAMES, [0, 1, 2])
    with pytest.raises(SystemExit):
        run(tmp_path, write_model(tmp_path / "m.safetensors"))
    assert "at least two images of every class" in capsys.readouterr().err
