"""A late-interaction retriever of documents, at random weights in the folder that transformers saves, as ``mv:``."""

import json
from pathlib import Path

import pytest
import torch

from filip.errors import UserError
from filip.eval.encoders import load_encoder
from filip.eval.scorer import load_scorer
from tests.eval.miniature import picture, run_protocol, write_webdataset

WORDS = ["a", "red", "cat", "two", "dogs", "Describe", "the", "image", ".", "Question", ":"]
TEXTS = ["a red cat", "two dogs", "red dogs the cat"]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a ColPali of four patches by four and a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        ColPaliConfig,
        ColPaliForRetrieval,
        ColPaliProcessor,
        PaliGemmaConfig,
        PreTrainedTokenizerFast,
        SiglipImageProcessorPil,
    )

    place = tmp_path_factory.mktemp("colpali")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), "<image>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, extra_special_tokens={"image_token": "<image>"}, **special
    )
    sees = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    sees.image_seq_length = 16
    ColPaliProcessor(sees, tokenizer).save_pretrained(place)
    vision = {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "vision_use_head": False}
    text = {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 32, "pad_token_id": 0}
    both = PaliGemmaConfig(
        vision_config={**TOWER, **vision, "projection_dim": 32},
        text_config={**TOWER, **text, "bos_token_id": 2, "eos_token_id": 1},
        image_token_index=4,
        projection_dim=32,
        hidden_size=32,
    )
    torch.manual_seed(0)
    ColPaliForRetrieval(ColPaliConfig(vlm_config=both, embedding_dim=16)).save_pretrained(place)
    return place


@torch.inference_mode()
def theirs(folder: Path, images: list, texts: list[str]) -> torch.Tensor:
    """Return ColPali's own scores [images, texts], of its model and its processor alone: sums over a query's tokens."""
    from transformers import ColPaliForRetrieval, ColPaliProcessor

    model, processor = (ColPaliForRetrieval.from_pretrained(folder).eval(), ColPaliProcessor.from_pretrained(folder))
    seen = model(**processor.process_images(images, return_tensors="pt")).embeddings
    read = [model(**processor.process_queries([text], return_tensors="pt")).embeddings[0] for text in texts]
    return torch.stack([(seen @ tokens.T).amax(1).mean(1) for tokens in read], 1)


def test_a_colpali_is_compared_as_its_own_code_does(folder: Path, tmp_path: Path) -> None:
    scorer, images = load_scorer(f"mv:{folder}"), [picture(n, 48) for n in range(3)]
    pixels = torch.stack([scorer.transform(image) for image in images])
    found = scorer.similarity(scorer.encode_images(pixels), scorer.encode_texts(TEXTS))
    torch.testing.assert_close(found.t2i, theirs(folder, images, TEXTS), atol=1e-5, rtol=0)
    assert scorer.encoder.grid == (0, 0)  # its prompt is among the tokens of an image

    captions = [f"{a} {b}" for a in ("a", "two", "red") for b in ("cat", "dogs", "red")]
    images = write_webdataset(tmp_path / "demo_fluent", None, [[caption] for caption in captions])
    given = [f"model=mv:{folder}", f"root={tmp_path}", "data=[demo_fluent]", f"out={tmp_path}/out.json"]
    run_protocol("retrieval", [*given, "prompts={c}"])
    own = theirs(folder, images, captions).T
    ranks = (own > own.diagonal()[:, None]).sum(1)
    recall = json.loads((tmp_path / "out.json").read_text())["benchmarks"]["demo_fluent"]["t2i"]
    assert recall["r1"] == pytest.approx((ranks < 1).float().mean().item())
    assert recall["r5"] == pytest.approx((ranks < 5).float().mean().item()) and 0 < recall["r5"] < 1


def test_what_differs_from_picture_to_picture_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(f"mv:{folder}")
    known = encoder.transform.further  # type: ignore[attr-defined]
    monkeypatch.setitem(known, "input_ids", known["input_ids"] + 1)
    with pytest.raises(UserError, match="turns an image into input_ids of its own as well as pixels"):
        encoder.transform(picture(0))
