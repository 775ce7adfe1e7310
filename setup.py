"""The cards and settings at the top of the repository travel inside the package; all else is in pyproject.toml."""

from setuptools import find_packages, setup

SHIPPED = {f"filip.resources.{folder}": folder for folder in ("data", "eval", "ds_configs")}

setup(packages=[*find_packages(include=["filip", "filip.*"]), *SHIPPED], package_dir=SHIPPED)
