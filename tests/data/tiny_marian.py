"""A tiny Marian model, trained here in seconds, in the files in which the hub has OPUS-MT's models.

It translates word by word. Two English synonyms have one German word, so that a round trip gives a paraphrase.
"""

import io
import json
import random
from pathlib import Path

import sentencepiece
import torch
import transformers

WORDS = {
    "dog": "hund", "cat": "katze", "house": "haus", "tree": "baum", "red": "rot", "green": "gruen", "large": "gross",
    "big": "gross", "sees": "sieht", "likes": "mag", "the": "der", "and": "und",
}  # fmt: skip


def build(folder: Path, lexicon: dict[str, str], steps: int = 400) -> None:
    folder.mkdir(parents=True)
    vocabulary = _vocabulary(folder, sorted({*WORDS, *WORDS.values()}))
    end, pad = vocabulary["</s>"], vocabulary["<pad>"]
    layers = {f"{side}_{name}": value for side in ("encoder", "decoder")
              for name, value in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 96))}  # fmt: skip
    config = transformers.MarianConfig(  # type: ignore[attr-defined]
        vocab_size=len(vocabulary), d_model=48, **layers, pad_token_id=pad, eos_token_id=end, dropout=0.0,
        decoder_start_token_id=pad, forced_eos_token_id=end, max_position_embeddings=64, max_length=16, num_beams=1,
        bad_words_ids=[[pad]], static_position_embeddings=True, scale_embedding=True, init_std=48**-0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    rng, model = random.Random(0), transformers.MarianMTModel(config)  # type: ignore[attr-defined]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, step / 30) * (1 - step / steps)
        texts = [[rng.choice(list(lexicon)) for _ in range(1 + step % 6)] for _ in range(64)]
        x = torch.tensor([[vocabulary["▁" + w] for w in t] + [end] for t in texts])
        y = torch.tensor([[vocabulary["▁" + lexicon[w]] for w in t] + [end] for t in texts])
        optimizer.zero_grad()
        model(input_ids=x, labels=y).loss.backward()
        optimizer.step()
        model.model.shared.weight.data[pad] = 0  # the first target is a zero vector, as in Marian
    model.save_pretrained(folder)


def _vocabulary(folder: Path, words: list[str]) -> dict[str, int]:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words)] * 20),
        model_writer=model,
        model_type="word",
        vocab_size=len(words) + 3,
        minloglevel=2,
    )
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(model.getvalue())
    tokens = ["</s>", "<unk>", *("▁" + word for word in words), "<pad>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    return vocabulary


def build_pair(folder: Path, pivot: str = "de") -> None:
    """Write FOLDER/en-de and FOLDER/de-en; the way back says "large" for both synonyms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small lose by sharing
    try:
        build(folder / f"en-{pivot}", WORDS)
        build(folder / f"{pivot}-en", {german: word for word, german in reversed(WORDS.items())})
    finally:
        torch.set_num_threads(threads)
