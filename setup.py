"""The cards and settings at the top of the repository travel inside the package; all else is in pyproject.toml."""

import sys

from setuptools import find_packages, setup

HERE = sys.version_info[:2]
if not (3, 11) <= HERE < (3, 15):  # said at once: pip would first look through gigabytes of wheels
    sys.exit(f"error: FILIP runs on Python 3.11 to 3.14, and this is {HERE[0]}.{HERE[1]}")

SHIPPED = {f"filip.resources.{folder}": folder for folder in ("data", "eval", "ds_configs")}

setup(
    packages=[*find_packages(include=["filip", "filip.*", "filip_demo", "filip_research"]), *SHIPPED],
    package_dir=SHIPPED,
    py_modules=["filip_command"],
)
