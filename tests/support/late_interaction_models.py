"""Late-interaction models of other projects at random weights, in the folders that their libraries save."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf

WORDS = ["a", "red", "cat", "two", "dogs", "Describe", "the", "image", ".", "Question", "Query", ":", "user"]
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TOWER, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 32, "pad_token_id": 0, "bos_token_id": 2}
TEXT |= {"eos_token_id": 1}


def tokenizer(**further: str) -> Any:
    """Return a tokenizer of a few words; ``further`` special tokens have the ids from 4 on."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *further.values(), *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=further, **SPECIAL)


def colpali(folder: Path) -> None:
    """Save a ColPali that sees squares of four patches by four."""
    sees = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    sees.image_seq_length = 16
    hf.ColPaliProcessor(sees, tokenizer(image_token="<image>")).save_pretrained(folder)
    vision = {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "vision_use_head": False}
    both = hf.PaliGemmaConfig(
        vision_config={**TOWER, **vision, "projection_dim": 32},
        text_config={**TEXT, "model_type": "gemma"},
        image_token_index=4,
        projection_dim=32,
        hidden_size=32,
    )
    hf.ColPaliForRetrieval(hf.ColPaliConfig(vlm_config=both, embedding_dim=16)).save_pretrained(folder)


def colqwen2(folder: Path) -> None:
    """Save a ColQwen2, which keeps the shape of a picture: 4 to 16 tokens, and its prompt's."""
    sees = hf.Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size={"shortest_edge": 32**2, "longest_edge": 64**2})
    marks = {name: f"<|{name}|>" for name in ("vision_start", "vision_end", "im_start", "im_end", "endoftext")}
    hf.ColQwen2Processor(sees, tokenizer(image_token="<|image_pad|>", **marks)).save_pretrained(folder)
    vision = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    places = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    both = hf.Qwen2VLConfig(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": places},
        image_token_id=4,
        video_token_id=31,
        vision_start_token_id=5,
        vision_end_token_id=6,
    )
    hf.ColQwen2ForRetrieval(hf.ColQwen2Config(vlm_config=both, embedding_dim=16)).save_pretrained(folder)


def embedding_gemma2(folder: Path) -> None:
    """Save an EmbeddingGemma 2 below a MultiVectorEncoder: 24 numbers a token, compared by the mean of maxima."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    marks = {"image": "<|image|>", "boi": "<|image>", "eoi": "<image|>", "audio": "<|audio|>", "boa": "<|audio>"}
    words = tokenizer(**{f"{name}_token": mark for name, mark in marks.items()}, eoa_token="<audio|>")
    patches: dict[str, Any] = {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 3}
    sees = hf.Gemma4ImageProcessorPil(**patches), words, hf.EmbeddingGemma2VideoProcessor(**patches)
    hf.EmbeddingGemma2Processor(hf.Gemma4AudioFeatureExtractor(), *sees).save_pretrained(folder)
    vision = {**TOWER, "model_type": "gemma4_vision", "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4}
    layers = {"embedding_dim": 32, "hidden_size_per_layer_input": 16}
    config = hf.EmbeddingGemma2Config(
        vision_config={**vision, "position_embedding_size": 128},
        text_config={**TEXT, **layers, "layer_types": ["sliding_attention", "full_attention"]},
        image_token_id=4,
        boi_token_id=5,
        eoi_token_id=6,
    )
    config.audio_config = None
    hf.EmbeddingGemma2Model(config).save_pretrained(folder)
    heads = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    head = Dense(32, 24, bias=False, activation_function=None, **heads)
    modules = [Transformer(str(folder)), head, Normalize(**heads), MultiVectorMask()]
    MultiVectorEncoder(modules=modules, similarity_fn_name="meanmaxsim", device="cpu").save_pretrained(str(folder))


KINDS = {"ColPali": colpali, "ColQwen2": colqwen2, "EmbeddingGemma 2": embedding_gemma2}


def write_late_interaction_model(folder: Path, kind: str) -> str:
    """Save a model of one of KINDS at random weights; return its name for ``model=``."""
    torch.manual_seed(0)
    KINDS[kind](folder)
    return f"mv:{folder}"
