"""The exported folder in sentence-transformers: its embeddings, its scores and its tools."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import filip
from filip.export.__main__ import Export, export
from filip.models import ModelConfig
from tests.export.conftest import run_without_us, write_inputs
from tests.support.captions import UNTIDY_CAPTIONS

PROGRAM = """
import json
import numpy, torch
from PIL import Image
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.interpretability import get_n_patches, maxsim_heatmap
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
model = MultiVectorEncoder({folder!r}, trust_remote_code=True, device="cpu", local_files_only=True)
paths = [f"{here}/{{i}}.png" for i in range({images})]
captions = json.load(open("{here}/captions.json"))
images, texts = model.encode([Image.open(path) for path in paths]), model.encode(captions, batch_size=2)
assert all(torch.equal(a, b) for a, b in zip(images, model.encode_document(paths)))
shown = numpy.asarray(Image.open(paths[0]))
assert torch.equal(model.encode_document([shown])[0], model.encode_document(paths[:1])[0])
given = model.preprocess(paths)
seen = [model.train(mode)(dict(given))["token_embeddings"] for mode in (False, True)]
assert torch.allclose(*seen, atol=1e-6) and seen[1].requires_grad
model.gradient_checkpointing_enable()
assert torch.allclose(model(dict(given))["token_embeddings"], seen[0], atol=1e-6)
model.eval()
pooled = model.encode_document(paths, token_pooling=HierarchicalTokenPooling(pool_factor=4))
model.save({folder!r} + "-again")
again = MultiVectorEncoder({folder!r} + "-again", trust_remote_code=True, device="cpu", local_files_only=True)
half = MultiVectorEncoder({folder!r}, trust_remote_code=True, device="cpu", model_kwargs={{"dtype": torch.bfloat16}})
grid = get_n_patches(model, (32, 32))
mask = torch.arange(len(images[0])) > 0  # without [CLS]
heat = maxsim_heatmap(Image.open(paths[0]).convert("RGB"), torch.as_tensor(texts[0]), images[0], grid, image_mask=mask)
torch.save({{
    "grid": grid, "heat": heat.size, "half": half.encode(paths[:1])[0],
    "images": images, "texts": texts, "i2t": model.similarity(images, texts), "t2i": model.similarity(texts, images),
    "pooled": [len(one) for one in pooled], "again": again.encode(captions), "similarity": again.similarity_fn_name,
}}, "{here}/found.pt")
"""


@pytest.mark.slow
def test_sentence_transformers_agrees(saved: Callable[..., str], tmp_path: Path, pictures: list[Image.Image]) -> None:
    def change(config: ModelConfig) -> None:
        config.cls_in_interaction, config.image.stem = True, "tf_efficientnet_lite0"  # like the demo's model
        config.image.stem_stride = 8

    file, folder = saved(change), tmp_path / "exported"
    export(Export(model=file, out=str(folder), to="mv"))
    write_inputs(tmp_path, pictures)
    program = PROGRAM.format(folder=str(folder), here=str(tmp_path), images=len(pictures))
    run_without_us(program, tmp_path)
    result = torch.load(tmp_path / "found.pt")

    model = filip.load(file, device="cpu")
    image, text = model.encode_images(pictures), model.encode_texts(UNTIDY_CAPTIONS)
    expected = model.similarity(image, text)
    torch.testing.assert_close(torch.stack(result["images"]), image, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat(result["texts"]), text.values, atol=1e-6, rtol=0)
    torch.testing.assert_close(result["i2t"], expected.i2t, atol=1e-6, rtol=0)
    torch.testing.assert_close(result["t2i"].T, expected.t2i, atol=1e-6, rtol=0)
    assert result["pooled"] == [5] * len(pictures)  # 17 tokens over 4, rounded up
    # in batches of another size, which round differently
    torch.testing.assert_close(torch.cat(result["again"]), text.values, atol=1e-6, rtol=0)
    assert result["similarity"] == "meanmaxsim"
    assert result["grid"] == (4, 4) and result["heat"] == pictures[0].size
    torch.testing.assert_close(result["half"].float(), result["images"][0], atol=0.05, rtol=0)
    assert {file.stat().st_mode & 0o777 for file in folder.rglob("*") if file.is_file()} == {0o644}
