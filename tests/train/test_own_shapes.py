"""Images of a batch in their own shapes: as transformers' NaFlex sees them, and as if each were alone."""

import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from filip.data.eval_transform import normalize_patches
from filip.data.loading.batches import patches_of
from filip.data.loading.config import DataConfig, Source, StreamConfig
from filip.data.loading.loader import PairLoader, build_loader
from filip.errors import UserError
from filip.eval.encoders import FilipEncoder
from filip.explore.towers import NotInPage, image_tower
from filip.export.hf_folder import tower_config
from filip.models import DualEncoder, build_model, load_preset
from filip.train.losses import Loss, resolve_weights
from filip.train.step import by_name, from_names
from filip.train.warm_start import load_initial
from tests.support.training import compose, losses, run_many, same_weights, train_arguments

NAFLEX = "model.image.options={use_naflex: true}"
SIZES = [(40, 24), (16, 48), (32, 32), (90, 20)]  # width, height


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def padded(images: list[np.ndarray]) -> dict[str, torch.Tensor]:
    rows = [patches_of(torch.from_numpy(image).permute(2, 0, 1), 8) for image in images]
    return {
        "pixels": normalize_patches(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)),
        "grids": torch.tensor([[image.shape[0] // 8, image.shape[1] // 8] for image in images]),
    }


def test_an_image_among_others_is_as_if_alone_and_so_is_the_loss() -> None:
    model = naflex_model()
    images = [picture(width - width % 8, height - height % 8) for width, height in SIZES]
    ids, lengths = model.tokenizer.tokenize(["a b", "c", "d e f", "g"])
    together = model(ids=ids, lengths=lengths, **padded(images))
    assert together.image_lengths.tolist() == [15, 12, 16, 22]
    alone = [model(ids=ids[:1], lengths=lengths[:1], **padded([image])) for image in images]
    for row, one in zip(together.image, alone, strict=True):
        torch.testing.assert_close(row[: one.image.shape[1]], one.image[0], atol=1e-5, rtol=0)
    # s^I and s^T by hand, from each image alone
    words = together.text.tokens.split(lengths.tolist())
    i2t = torch.stack([torch.stack([(a.image[0] @ w.T).amax(1).mean() for w in words]) for a in alone])
    t2i = torch.stack([torch.stack([(a.image[0] @ w.T).amax(0).mean() for w in words]) for a in alone])
    scale, own = together.logit_scale, torch.arange(4)
    expected = 0.5 * (
        torch.nn.functional.cross_entropy(scale * i2t, own) + torch.nn.functional.cross_entropy(scale * t2i.T, own)
    )
    config = compose("model=tiny", NAFLEX, "precision=fp32", "transport_dtype=fp32")
    loss = Loss(resolve_weights(config.loss, "token_wise"), config)
    found = loss(together, own)
    torch.testing.assert_close(found.loss, expected, atol=1e-5, rtol=1e-5)
    found.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    again = from_names(by_name(together))
    assert torch.equal(again.image_lengths, together.image_lengths)


@pytest.mark.parametrize(
    "settings",
    [
        ["token_maximum=smooth"],
        ["token_maximum=top_k"],
        ["loss.token_wise=0", "loss.token_wise_sigmoid=1"],
        ["loss.token_wise=1", "loss.pooled=1", "model.pooling=mean"],
    ],
)
def test_what_stands_behind_an_image_changes_no_term(settings: list[str]) -> None:
    config = compose("model=tiny", NAFLEX, "precision=fp32", "transport_dtype=fp32", *settings)
    loss, model = Loss(resolve_weights(config.loss, "token_wise"), config), build_model(config.model)
    model.set_loss_parameters(loss.parameters(model))
    ids, lengths = model.tokenizer.tokenize(["a b", "c", "d e f", "g"])
    batch = padded([picture(width - width % 8, height - height % 8) for width, height in SIZES])
    found = []
    for more in (0, 9):
        pixels = torch.nn.functional.pad(batch["pixels"], (0, 0, 0, more), value=3.0)
        both = loss.reads_both("token_wise")
        encoded = model(pixels, ids, lengths, tokens_and_vectors=both, grids=batch["grids"])
        found.append(loss(encoded, torch.arange(4)).loss)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_on_squares_a_naflex_is_the_vit_that_it_starts_from(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pt")
    plain, config = load_preset("tiny"), load_preset("tiny")
    config.image.options["use_naflex"] = True
    name = f"timm:vit_tiny_patch16_224:{tmp_path / 'vit.pt'}"
    with torch.no_grad():
        expected, found = (
            load_initial(name, c).eval().image.trunk(torch.ones(1, 3, 224, 224)) for c in (plain, config)
        )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_pooled_vectors_leave_padding_out() -> None:
    model = naflex_model(interaction="pooled", pooling="attention")
    images = [picture(32, 32), picture(16, 8)]
    ids, lengths = model.tokenizer.tokenize(["a", "b"])
    with torch.no_grad():
        together = model(ids=ids, lengths=lengths, **padded(images)).image
        alone = [model(ids=ids[:1], lengths=lengths[:1], **padded([image])).image[0] for image in images]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)


def naflex_model(**changes: str) -> DualEncoder:
    torch.manual_seed(0)
    config = load_preset("tiny")
    config.image.options["use_naflex"] = True
    for name, value in changes.items():
        setattr(config, name, value)
    return build_model(config)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two shards of 48 pictures of four shapes."""
    folder = tmp_path_factory.mktemp("shapes") / "shards"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(48):
                file = io.BytesIO()
                Image.fromarray(picture(*SIZES[i % 4])).save(file, "PNG")
                for suffix, data in (("png", file.getvalue()), ("txt", f"picture {i} of {shard}".encode())):
                    info = tarfile.TarInfo(f"{shard:03d}{i:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def loader(shapes: Path, workers: int, budgets: list[int]) -> PairLoader:
    data = DataConfig(sources=[Source(str(shapes))], workers=workers, patch_budgets=budgets, auto_augment=0.5)
    return build_loader(StreamConfig(data, batch_size=8, image_size=32, patch_size=8))


def test_batches_keep_shapes_within_the_budget_drawn_for_them(shapes: Path) -> None:
    batches = list(loader(shapes, 0, [6, 30]))
    most = [int(batch["grids"].prod(dim=1).max()) for batch in batches]
    assert all(n <= 6 or 20 <= n <= 30 for n in most) and min(most) <= 6 < max(most)
    for batch in batches:
        assert batch["pixels"].dtype == torch.uint8 and batch["pixels"].shape[1:] == (
            int(batch["grids"].prod(dim=1).max()),
            192,
        )
        for key, (rows, columns) in zip(batch["key"], batch["grids"].tolist(), strict=True):
            width, height = SIZES[int(key[3:]) % 4]
            wanted = width / height
            # as near to the picture's shape as whole patches come
            assert math.floor(wanted * (rows - 1)) <= columns <= math.ceil(wanted * rows) + 1
    # as before with workers, and from the middle
    again = loader(shapes, 2, [6, 30])
    state = loader(shapes, 0, [6, 30])
    taken = [next(iter(state)) for _ in range(1)]
    again.load_state_dict(state.state_dict())
    for one, other in zip([*taken, *again], batches, strict=True):
        assert torch.equal(one["pixels"], other["pixels"]) and torch.equal(one["grids"], other["grids"])


def test_it_trains_on_two_ranks_and_resumes_exactly(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = train_arguments(
        tmp_path, run, NAFLEX, f"data.sources=[{{shards: {shapes}}}]", "data.patch_budgets=[6,16]", "global_batch=16",
        "max_steps=4", "optimizer.warmup_steps=1", "checkpoint.every_steps=2", "model=tiny",
    )  # fmt: skip
    cached = [text for text in arguments if not text.startswith(("run_dir", "out"))]
    other = tmp_path / "cached"
    cached += [f"run_dir={other}", f"out={other}/model.safetensors", "gradient_cache=2"]
    assert run_many(2, [arguments, cached], tmp_path / "log.txt") == [0, 0]
    assert len(losses(run)) == 4 and all(map(math.isfinite, losses(run)))
    torch.testing.assert_close(torch.tensor(losses(run)), torch.tensor(losses(other)), atol=1e-4, rtol=1e-4)
    (run / "model.safetensors").rename(tmp_path / "first.safetensors")
    for name in ("finished.json", "model.json"):
        (run / name).unlink()
    for file in (run / "finished").iterdir():
        file.unlink()
    assert run_many(2, [arguments], tmp_path / "again.txt") == [0]
    assert "at step 2" in (tmp_path / "again.txt").read_text()
    assert same_weights(tmp_path / "first.safetensors", run / "model.safetensors")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([], "needs an image tower that takes images in their own shape"),
        ([NAFLEX, "token_keep_ratio=0.5"], "token_keep_ratio is for squares"),
        ([NAFLEX, "loss.sparc=1"], "loss.sparc compares images of equally many patches"),
    ],
)
def test_what_own_shapes_cannot_do_is_refused_by_name(settings: list[str], reason: str) -> None:
    from filip.train.training_data import check_own_shapes

    config = compose("model=tiny", "data.patch_budgets=[16]", *settings)
    with pytest.raises(UserError, match=reason):
        check_own_shapes(config, build_model(config.model))


def test_exports_see_squares_and_the_page_computes_none() -> None:
    # not above: sentence-transformers takes a second of every process that collects the tests
    from filip.export.standalone.multi_vector_filip import FilipMultiVector

    model = naflex_model().eval()
    assert FilipMultiVector(tower_config(model), None).processor.image_seq_length == 16
    with pytest.raises(NotInPage, match="in their own shape"):
        image_tower(FilipEncoder(model, "a"))
