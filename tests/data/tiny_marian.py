"""A tiny Marian model, trained here in seconds and written in the very files in which OPUS-MT publishes its models.

It translates word by word. Two English synonyms have one German word, so that a round trip gives a paraphrase.
"""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import yaml
from ctranslate2.converters.marian import _make_sinusoidal_position_encodings
from torch import nn

WORDS = {
    "dog": "hund", "cat": "katze", "house": "haus", "tree": "baum", "red": "rot", "green": "gruen", "large": "gross",
    "big": "gross", "sees": "sieht", "likes": "mag", "the": "der", "and": "und",
}  # fmt: skip
WIDTH, HEADS, HIDDEN, LENGTH = 48, 4, 96, 6
EOS = 0


class Net(nn.Module):
    """Marian's post-norm transformer of one layer: embeddings scaled, a zero vector as the first target."""

    positions: torch.Tensor

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(source, WIDTH), nn.Embedding(target, WIDTH)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, 0.0, batch_first=True)
        self.out = nn.Linear(WIDTH, target)
        for embedding in (self.source, self.target):
            nn.init.normal_(embedding.weight, std=WIDTH**-0.5)
        positions = _make_sinusoidal_position_encodings(WIDTH)[: LENGTH + 2]
        self.register_buffer("positions", torch.tensor(positions, dtype=torch.float32))

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map ids [b, n] ending in EOS (source, target) → logits [b, n, vocabulary]."""
        n, m = source.shape[1], target.shape[1]
        memory = self.encoder(self.source(source) * WIDTH**0.5 + self.positions[:n])
        shifted = nn.functional.pad(self.target(target[:, :-1]) * WIDTH**0.5, (0, 0, 1, 0))
        mask = nn.Transformer.generate_square_subsequent_mask(m)
        return self.out(self.decoder(shifted + self.positions[:m], memory, tgt_mask=mask))


def build(folder: Path, source: list[str], target: list[str], lexicon: dict[str, str], steps: int = 220) -> None:
    """Train ``lexicon`` and write source.spm, target.spm, vocab.yml files, model.npz and decoder.yml."""
    folder.mkdir(parents=True)
    vocabularies = [_vocabulary(folder, name, words) for name, words in (("source", source), ("target", target))]
    torch.manual_seed(0)
    rng = random.Random(0)
    net = Net(*map(len, vocabularies))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, step / 30) * (1 - step / steps)
        length = 3 + step % (LENGTH - 2)
        texts = [[rng.choice(source) for _ in range(length)] for _ in range(64)]
        x = torch.tensor([[vocabularies[0]["▁" + w] for w in t] + [EOS] for t in texts])
        y = torch.tensor([[vocabularies[1]["▁" + lexicon[w]] for w in t] + [EOS] for t in texts])
        loss = nn.functional.cross_entropy(net(x, y).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.savez(folder / "model.npz", **_marian_weights(net))
    decoder = {"models": ["model.npz"], "vocabs": ["source.yml", "target.yml"]}
    (folder / "decoder.yml").write_text(yaml.safe_dump(decoder))


def _vocabulary(folder: Path, name: str, words: list[str]) -> dict[str, int]:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words)] * 20),
        model_writer=model,
        model_type="word",
        vocab_size=len(words) + 3,
        minloglevel=2,
    )
    (folder / f"{name}.spm").write_bytes(model.getvalue())
    vocabulary = {"</s>": EOS, "<unk>": 1} | {"▁" + word: i + 2 for i, word in enumerate(words)}
    lines = [f'"{token}": {number}\n' for token, number in vocabulary.items()]
    (folder / f"{name}.yml").write_text("".join(lines))
    return vocabulary


def _marian_weights(net: Net) -> dict[str, Any]:
    weights: dict[str, np.ndarray] = {}

    def put(name: str, tensor: torch.Tensor) -> None:
        array = tensor.detach().numpy()
        weights[name] = np.ascontiguousarray(array.T if array.ndim == 2 else array[None])

    def linear(scope: str, suffix: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        put(f"{scope}_W{suffix}", weight)
        put(f"{scope}_b{suffix}", bias)

    def norm(name: str, layer: nn.LayerNorm) -> None:
        put(f"{name}_ln_scale", layer.weight)
        put(f"{name}_ln_bias", layer.bias)

    def attention(scope: str, layer: nn.MultiheadAttention, after: nn.LayerNorm) -> None:
        for suffix, weight, bias in zip("qkv", layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True):
            linear(scope, suffix, weight, bias)
        linear(scope, "o", layer.out_proj.weight, layer.out_proj.bias)
        norm(f"{scope}_Wo", after)

    def feed_forward(
        scope: str, layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer, after: nn.LayerNorm
    ) -> None:
        linear(scope, "1", layer.linear1.weight, layer.linear1.bias)
        linear(scope, "2", layer.linear2.weight, layer.linear2.bias)
        norm(f"{scope}_ffn", after)

    attention("encoder_l1_self", net.encoder.self_attn, net.encoder.norm1)
    feed_forward("encoder_l1_ffn", net.encoder, net.encoder.norm2)
    attention("decoder_l1_self", net.decoder.self_attn, net.decoder.norm1)
    attention("decoder_l1_context", net.decoder.multihead_attn, net.decoder.norm2)
    feed_forward("decoder_l1_ffn", net.decoder, net.decoder.norm3)
    linear("decoder_ff_logit_out", "", net.out.weight, net.out.bias)
    weights["encoder_Wemb"] = net.source.weight.detach().numpy()
    weights["decoder_Wemb"] = net.target.weight.detach().numpy()
    config = {
        "type": "transformer", "enc-depth": 1, "dec-depth": 1, "transformer-heads": HEADS,
        "transformer-ffn-activation": "relu", "transformer-preprocess": "", "transformer-postprocess": "dan",
        "transformer-postprocess-emb": "d", "transformer-decoder-autoreg": "self-attention",
        "transformer-no-projection": False, "transformer-guided-alignment-layer": "last",
    }  # fmt: skip
    weights["special:model.yml"] = np.frombuffer(yaml.safe_dump(config).encode() + b"\0", np.int8)
    return weights


def build_pair(folder: Path, pivot: str = "de") -> None:
    """Write FOLDER/en-de and FOLDER/de-en; the way back says "large" for both synonyms."""
    english, german = list(WORDS), sorted(set(WORDS.values()))
    back = {german_word: word for word, german_word in reversed(WORDS.items())}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small lose by sharing
    try:
        build(folder / f"en-{pivot}", english, german, WORDS)
        build(folder / f"{pivot}-en", german, [word for word in english if word in back.values()], back)
    finally:
        torch.set_num_threads(threads)
