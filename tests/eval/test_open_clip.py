"""open_clip's models are built with the activation that their weights were trained with."""

from pathlib import Path

import pytest

from filip.common.errors import UserError
from filip.eval.encoders import load_encoder
from filip.eval.encoders.open_clip import activation_of
from tests.eval.miniature import ARCHITECTURE, write_open_clip


@pytest.mark.parametrize(
    ("architecture", "tag", "activation"),
    [
        ("ViT-B-32", "openai", "quickgelu"),
        ("ViT-B-32", "laion400m_e32", "quickgelu"),
        ("ViT-B-32", "metaclip_400m", "quickgelu"),
        ("ViT-L-14", "dfn2b", "quickgelu"),
        ("RN50", "yfcc15m", "quickgelu"),
        ("ViT-B-32-quickgelu", "openai", "quickgelu"),
        ("ViT-B-32", "laion2b_s34b_b79k", "gelu"),
        ("ViT-B-32", None, "gelu"),
        ("ViT-B-32-quickgelu", None, "quickgelu"),
    ],
)
def test_the_tag_decides_the_activation(architecture: str, tag: str | None, activation: str) -> None:
    assert activation_of(architecture, tag, None) == activation


def test_a_file_must_say_its_activation_and_gets_it(tmp_path: Path) -> None:
    weights = write_open_clip(tmp_path)
    name = f"open_clip:{ARCHITECTURE}:{weights}"
    with pytest.raises(UserError, match="does not say which activation"):
        load_encoder(name)
    for activation, layer in (("quickgelu", "QuickGELU"), ("gelu", "GELU")):
        encoder = load_encoder(f"{name}:{activation}")
        layers = {type(module).__name__ for module in encoder.model.modules()}  # type: ignore[attr-defined]
        assert layers & {"QuickGELU", "GELU"} == {layer}
