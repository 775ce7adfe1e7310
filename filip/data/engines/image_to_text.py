"""image-to-text: a captioning model of transformers (BLIP, GIT, BLIP-2 …), by its name on the hub or its folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from filip.errors import UserError, first_line
from filip.extras import how_to_install
from filip.files import file_state

LONGEST = 40  # tokens of a caption


class ImageToText:
    """Engine that describes an image; it does not read the caption."""

    def __init__(self, models: str | None) -> None:
        absent = self.missing(models)
        if absent or models is None:
            raise UserError(absent or "")
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._processor: Any = AutoProcessor.from_pretrained(models)
            model: Any = AutoModelForImageTextToText.from_pretrained(models)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"recaption_models={models} cannot be loaded: {first_line(error)}") from error
        self._model: Any = model.to(self._device).eval()
        states = [file_state(path) for path in sorted(Path(models).glob("*")) if path.is_file()]
        self.model = f"{models}:{getattr(self._model.config, '_commit_hash', None) or states}"

    @staticmethod
    def missing(models: str | None) -> str | None:
        if models is None:
            return "recaption: image-to-text needs recaption_models: a model on the hub or a folder"
        if find_spec("transformers") is None:
            return f"recaption: image-to-text needs transformers: {how_to_install('export')}"
        return None

    def captions(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[str]:
        import torch

        given = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            tokens = self._model.generate(**given, max_new_tokens=LONGEST, do_sample=False)
        return [str(text) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]
