"""FILIP's dual encoder, the CLIP baseline with the same towers, and their files."""

from filip.models.config import (
    ImageTowerConfig,
    ModelConfig,
    TextTowerConfig,
    config_from_dict,
    load_preset,
    preset_names,
)
from filip.models.dual_encoder import DualEncoder, Encoded, PooledFeatures, TextFeatures, build_model
from filip.models.weights import load_model, read_extra, save_model

__all__ = [
    "DualEncoder",
    "Encoded",
    "ImageTowerConfig",
    "ModelConfig",
    "PooledFeatures",
    "TextFeatures",
    "TextTowerConfig",
    "build_model",
    "config_from_dict",
    "load_model",
    "load_preset",
    "preset_names",
    "read_extra",
    "save_model",
]
