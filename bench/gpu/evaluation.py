"""Evaluate on the device: similarities and ranks against the CPU's, and the time of MSCOCO's 125 million pairs."""

import torch
import torch.nn.functional as F

from bench.gpu.finding import FAIL, PASS, Finding, Place, seconds_and_bytes
from bench.train_step import captions
from filip.eval.scorer import Scorer, load_scorer
from filip.models import build_model, load_preset
from filip.models.weights import save_model
from late_interaction import Similarity, score

# Bounds for similarities of unit tokens. 16 bits: towers of random weights in another precision than the CPU's float32.
CLOSE = {"fp32": 1e-3, "auto": 5e-2}


def check(place: Place) -> Finding:
    torch.manual_seed(0)
    config = load_preset("tiny" if place.tiny else "base")
    model = place.folder / "model.safetensors"
    save_model(model, build_model(config))
    count, side = 8 if place.tiny else 64, config.image.image_size
    pixels, texts = torch.rand(count, 3, side, side), captions(count, 14)
    expected = similarity(load_scorer(str(model), device="cpu", precision="fp32"), pixels, texts)
    rows, wrong = [], []
    for precision, tolerance in CLOSE.items():
        found = similarity(load_scorer(str(model), device=str(place.device), precision=precision), pixels, texts)
        furthest = max(float((a.float() - b).abs().max()) for a, b in zip(found, expected, strict=True))
        same = float((found.i2t.argmax(1) == expected.i2t.argmax(1)).float().mean())
        rows.append({"what": f"{config.name}, precision={precision}", "largest difference": furthest,
                     "same best text": f"{same:.0%}"})  # fmt: skip
        if furthest > tolerance:
            wrong.append(f"precision={precision} is off by {furthest:.2g}")
    images, words = (40, 100) if place.tiny else (5000, 25_010)
    lengths = torch.randint(10, 21, (words,), generator=torch.Generator().manual_seed(0))
    dtype = torch.float32 if place.device.type == "cpu" else torch.float16
    patches, tokens = (
        F.normalize(torch.randn(shape, device=place.device, dtype=torch.float32), dim=-1).to(dtype)
        for shape in ((images, 49, 256), (int(lengths.sum()), 256))
    )
    seconds, size = seconds_and_bytes(lambda: score(patches, tokens, lengths), place.device, 1)
    rows.append({"what": f"score, {images:,} x {words:,}", "seconds": seconds, "MB": size / 1e6})
    if wrong:
        return Finding(FAIL, "; ".join(wrong), rows)
    return Finding(PASS, f"as on the CPU; {images * words / seconds / 1e6:.3g} million pairs a second", rows)


def similarity(scorer: Scorer, pixels: torch.Tensor, texts: list[str]) -> Similarity:
    return scorer.similarity(scorer.encode_images(pixels.to(scorer.encoder.device)), scorer.encode_texts(texts))
