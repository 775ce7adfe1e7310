"""Takes filip/interaction from the repository that this folder is in; the rest of filip stays behind."""

import re
from pathlib import Path

from setuptools import setup

FILIP = Path("..", "..", "filip")  # setuptools wants it relative to this file

found = re.search(r'__version__ = "(.+)"', (Path(__file__).parent / FILIP / "__init__.py").read_text())
assert found, "filip/__init__.py holds no version"
setup(
    version=found[1],
    packages=["filip.interaction"],
    package_dir={"filip.interaction": str(FILIP / "interaction")},
    package_data={"filip.interaction": ["csrc/*"]},
)
