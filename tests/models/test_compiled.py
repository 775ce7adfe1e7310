"""Blocks of both towers in torch's compiler: one graph for any length of captions, and the numbers of eager blocks."""

import copy
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from filip.models import DualEncoder, TextFeatures, build_model, load_preset


def one_step(model: DualEncoder, seed: int) -> list[torch.Tensor]:
    """Return the embeddings of a batch whose captions have other lengths with each seed, and all gradients."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9 + seed, (4,), generator=generator)
    ids = torch.randint(1, 1000, (4, int(lengths.max())), generator=generator)
    size = model.image_size
    encoded = model(torch.randn(4, 3, size, size, generator=generator), ids, lengths)
    assert isinstance(encoded.text, TextFeatures)
    model.zero_grad()
    (encoded.image.mean(1) @ encoded.text.tokens.T).square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [encoded.image, encoded.text.tokens, *gradients]


def test_other_lengths_need_no_other_graph_and_nothing_breaks_one() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = build_model(load_preset("tiny")).train()
    compiled = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile_blocks(backend=counter, fullgraph=True)
    assert list(compiled.state_dict()) == list(eager.state_dict())
    graphs = set()
    for seed in range(5):
        for ours, theirs in zip(one_step(compiled, seed), one_step(eager, seed), strict=True):
            assert torch.equal(ours, theirs)
        graphs.add(counter.frame_count)
    assert len(graphs) == 1


@pytest.mark.slow
def test_compiled_kernels_are_close_to_eager_ones() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = load_preset("tiny")
    config.image.layers = config.text.layers = 1  # each is compiled: a matter of many seconds
    eager = build_model(config).train()
    eager.set_gradient_checkpointing(True)
    compiled = copy.deepcopy(eager)
    compiled.compile_blocks()
    for seed in range(3):
        theirs = one_step(eager, seed)
        assert all(bool(tensor.isfinite().all()) for tensor in theirs), "the eager step has numbers that are not finite"
        torch.testing.assert_close(one_step(compiled, seed), theirs, rtol=1e-4, atol=1e-5)


def test_kernels_for_a_lowered_cpu_are_kept_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Those of the one abort in the other, or give NaN: torch's cache does not tell them apart.
    folders = {}
    for capability in ("", "avx2", "default"):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        build_model(load_preset("tiny")).compile_blocks()
        folders[capability] = cache_dir()
    assert len(set(folders.values())) == 3
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    build_model(load_preset("tiny")).compile_blocks()
    assert cache_dir() == str(tmp_path)
