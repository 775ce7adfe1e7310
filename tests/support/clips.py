"""Random models that open_clip and transformers themselves wrote, with the files that are beside them."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import Unigram
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from filip.text.tokenizer import BOS, EOS

# patch, image width, heads, text width, embed_dim: CLIP's shapes, two blocks deep, and one for what needs none of them
SHAPES = {"tiny": (32, 64, 1, 64, 32), "B-32": (32, 768, 12, 512, 512), "L-14": (14, 1024, 16, 768, 768)}


@torch.no_grad()
def shaken(model: Any) -> Any:
    """Shake norms and biases so that they are not 1 and 0, as after a training."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def briefly_trained(model: Any, steps: int) -> Any:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    ids = F.pad(torch.randint(1, BOS, (4, 10)), (0, 67), value=EOS)
    for _ in range(steps):
        image, text, scale = model(torch.randn(4, 3, 224, 224), ids)
        loss = F.cross_entropy(scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T, torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def open_clip_file(folder: Path, quick_gelu: bool = False, shape: str = "tiny", steps: int = 0, **changes: Any) -> str:
    """Write ``open_clip:ARCH:FILE`` of a model that open_clip built and saved, random or trained for ``steps``."""
    patch, width, heads, text_width, embed_dim = SHAPES[shape]
    config: dict[str, Any] = {
        "embed_dim": embed_dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": 224, "layers": 2, "width": width, "patch_size": patch, "head_width": width // heads,
            **changes.get("vision_cfg", {}),
        },
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": text_width, "heads": text_width // 64, "layers": 2,
            **changes.get("text_cfg", {}),
        },
    }  # fmt: skip
    architecture = f"{folder.name}-{shape}-{len(list(folder.iterdir()))}"
    (folder / architecture).mkdir()
    (folder / architecture / f"{architecture}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / architecture)
    torch.manual_seed(0)
    model = shaken(open_clip.create_model(architecture))
    model = briefly_trained(model, steps)
    file = folder / architecture / "weights.pt"
    torch.save(model.state_dict(), file)
    return f"{architecture}:{file}"


def hf_folder(folder: Path) -> None:
    """Write a random CLIP that transformers saved, with its processor."""
    patch, width, heads, text_width, embed_dim = SHAPES["tiny"]
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 2, "num_attention_heads": heads,
            "image_size": 224, "patch_size": patch,
        },
        text_config={
            "hidden_size": text_width, "intermediate_size": 4 * text_width, "num_hidden_layers": 2,
            "num_attention_heads": text_width // 64,
        },
        projection_dim=embed_dim,
    )  # fmt: skip
    shaken(CLIPModel(config)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def unigram_tokenizer(captions: list[str], words: int = 120) -> Tokenizer:
    """Return a small sentencepiece-like tokenizer in the form of Gemma's: lower case, spaces as ▁, [EOS] behind."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer.train_from_iterator(
        captions,
        trainers.UnigramTrainer(vocab_size=words, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer
