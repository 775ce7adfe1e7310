"""OPUS-MT models as the hub has them: fetched from a server with its layout, converted, and run."""

import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from filip.data.engines import load_engine
from filip.data.fetch_translation import FetchConfig, fetch_model, main
from filip.errors import UserError

COMMIT = "0123456789" * 4


class Hub:
    """A server of the models below ``root``, with the hub's paths. It cuts off the first answer about a large file."""

    def __init__(self, root: Path) -> None:
        outer = self
        self.asked: list[tuple[str, str | None]] = []
        self.damaged: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                place = urllib.parse.urlsplit(self.path).path
                told = re.fullmatch(r"/api/models/(.+)/revision/(main|[0-9a-f]{40})", place)
                resolved = re.fullmatch(r"/(.+)/resolve/[0-9a-f]{40}/(.+)", place)
                if told and (root / told[1]).is_dir():
                    files = [describe(path) for path in sorted((root / told[1]).iterdir())]
                    self.answer(200, json.dumps({"id": told[1], "sha": COMMIT, "siblings": files}).encode())
                elif resolved and (root / resolved[1] / resolved[2]).is_file():
                    self.file(root / resolved[1] / resolved[2])
                elif place == "/":
                    self.answer(200, b"")
                else:
                    self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

            def file(self, path: Path) -> None:
                data, wanted, about = path.read_bytes(), self.headers["Range"], describe(path)
                etag = str((about.get("lfs") or {"sha256": about["blobId"]})["sha256"])
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
                if self.command == "HEAD":
                    self.answer(200, data, headers)
                    return
                first = path.name not in {asked for asked, _ in outer.asked}
                outer.asked.append((path.name, wanted))
                if path.name in outer.damaged:
                    data = bytes(len(data))
                begun = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                self.answer(206 if wanted else 200, data[begun:], headers, first and len(data) > 10_000)

            def answer(
                self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False
            ) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body[: len(body) // 2] if cut else body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


def describe(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    entry: dict[str, Any] = {"rfilename": path.name, "size": len(data)}
    entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if len(data) > 10_000:
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}
    return entry


def write_model(folder: Path) -> None:
    """Write a random Marian model as transformers does."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    from tests.data.tiny_marian import WORDS, _vocabulary

    folder.mkdir(parents=True)
    words = sorted({*WORDS, *WORDS.values()})
    vocabulary = _vocabulary(folder, "source", words)
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    (folder / "source.yml").unlink()
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "<pad>": len(vocabulary)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    pad = len(vocabulary)
    layers = {f"{side}_{name}": value for side in ("encoder", "decoder")
              for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))}  # fmt: skip
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=pad + 1, d_model=32, **layers, pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad,
        forced_eos_token_id=0, max_position_embeddings=64, max_length=16, num_beams=1, bad_words_ids=[[pad]],
        activation_function="swish", static_position_embeddings=True, scale_embedding=True, init_std=0.3,
    )  # fmt: skip
    MarianMTModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    for name in ("en-de", "de-en"):
        write_model(root / f"Helsinki-NLP/opus-mt-{name}")
    (root / "Helsinki-NLP/opus-mt-en-xx").mkdir()
    hub = Hub(root)
    hub.root = root
    yield hub
    hub.server.shutdown()


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_converted_and_translates_as_transformers_does(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filip.data.engines.marian.QUANTIZATION", "float32")
    monkeypatch.setattr("filip.data.engines.marian.BEAM", 1)
    monkeypatch.setattr("filip.data.engines.marian.MAX_LENGTH", 14)  # the 16 below include start and end
    main(FetchConfig(["de"], str(tmp_path), hub=hub.url))
    asked = [name for name, _ in hub.asked]
    assert asked.count("model.safetensors") == 3, "that of en-de was cut off, so it is asked for again"
    asked = len(hub.asked)
    main(FetchConfig(["de"], str(tmp_path), hub=hub.url))
    assert len(hub.asked) == asked, "what is there is not fetched again"

    from transformers import MarianMTModel, MarianTokenizer

    texts = ["the big dog likes the cat", "red house", "a tree"]
    found = load_engine("marian", "de", str(tmp_path)).to_pivot(texts)
    tokenizer = MarianTokenizer.from_pretrained(tmp_path / "en-de")
    model = MarianMTModel.from_pretrained(tmp_path / "en-de").eval()
    for text, translation in zip(texts, found, strict=True):
        ids = model.generate(
            **tokenizer(text, return_tensors="pt"), num_beams=1, do_sample=False, max_length=16
        )
        assert translation == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def test_what_arrives_damaged_or_not_at_all_is_not_taken_for_a_model(hub: Hub, tmp_path: Path) -> None:
    hub.damaged = {"vocab.json"}
    with pytest.raises(
        UserError, match=r"en-de/vocab\.json: its checksum is [0-9a-f]{40} and not [0-9a-f]{40}"
    ):
        main(FetchConfig(["de"], str(tmp_path), hub=hub.url))
    hub.damaged = set()
    assert not (tmp_path / "en-de" / "vocab.json").exists()
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:\d+ has no model Helsinki-NLP/opus-mt-en-ru$"):
        main(FetchConfig(["ru"], str(tmp_path), hub=hub.url))
    with pytest.raises(UserError, match=r"opus-mt-en-xx has no config\.json, .*it is not an OPUS-MT model"):
        main(FetchConfig(["xx"], str(tmp_path), hub=hub.url))


def test_a_hub_that_does_not_answer_is_one_sentence_within_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^cannot ask http://127\.0\.0\.1:1 for .*copy the folder$"):
        main(FetchConfig(["de"], str(tmp_path), hub="http://127.0.0.1:1"))
    assert time.monotonic() - started < 30


def test_a_file_that_was_changed_here_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    fetch_model(hub.url, "Helsinki-NLP/opus-mt-en-de", "main", tmp_path)
    whole = (tmp_path / "vocab.json").read_bytes()
    (tmp_path / "vocab.json").write_bytes(whole[:-1])
    fetch_model(hub.url, "Helsinki-NLP/opus-mt-en-de", COMMIT, tmp_path)
    assert (tmp_path / "vocab.json").read_bytes() == whole
