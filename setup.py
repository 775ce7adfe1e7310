"""Declare what pyproject.toml cannot: a dependency in this folder, and packages made of the cards at its top."""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

HERE = sys.version_info[:2]
if not (3, 11) <= HERE < (3, 15):  # stop here: pip would first look through gigabytes of wheels
    sys.exit(f"error: FILIP runs on Python 3.11 to 3.14, and this is {HERE[0]}.{HERE[1]}")

SHIPPED = {f"filip.resources.{folder}": folder for folder in ("data", "eval", "ds_configs")}
# The loss is a distribution of its own, from this checkout unless the wheel is to be carried elsewhere.
ENGINE = f"late-interaction @ {(Path(__file__).resolve().parent / 'late-interaction').as_uri()}"
if os.environ.get("FILIP_WHEEL"):
    ENGINE = "late-interaction>=0.1,<0.2"
# The core loads a model, encodes and scores; what else a person does is an extra.
DEPENDENCIES = [
    ENGINE,
    "torch>=2.6,<3",
    "torchvision>=0.21,<1",  # timm brings it; decoders and AutoAugment
    "timm>=1.0,<2",
    "safetensors>=0.4,<1",
    "tokenizers>=0.21,<1",  # CLIP's byte-pair encoding in Rust
    "ftfy>=6,<7",
    "numpy>=1.26,<3",
    "scipy>=1.11,<2",  # the parts of a picture in which a word stands out
    "pillow>=12.2",
    "simplejpeg>=1.8,<2",  # decodes the loader's JPEGs
    "pyyaml>=6,<7",
    "tqdm>=4.66,<5",
    "psutil>=5,<8",
    "hydra-core>=1.3,<2",  # every command reads its options with it, the evaluations of the core included;
    "omegaconf>=2.3,<3",  # it is pure Python and small
]

setup(
    packages=[*find_packages(include=["filip", "filip.*", "filip_demo", "filip_research"]), *SHIPPED],
    package_dir=SHIPPED,
    install_requires=DEPENDENCIES,
)
