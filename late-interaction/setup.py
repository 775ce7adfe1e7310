"""A wheel with the compiled CPU kernels where there is a compiler; all else is in pyproject.toml."""

import functools
import runpy
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# The file alone: to import the package would import PyTorch, which is not there yet.
NATIVE = runpy.run_path(str(Path(__file__).parent / "late_interaction/native_build.py"))


class BuildWithKernels(build_py):
    """Compile the kernels into the wheel, or for an editable installation into the user's cache: nobody waits later."""

    def run(self) -> None:
        super().run()
        if self.distribution.has_ext_modules():
            try:
                if self.editable_mode:
                    NATIVE["library_path"]()
                else:
                    packaged = Path(self.build_lib, "late_interaction", NATIVE["PACKAGED"].name)
                    NATIVE["compile_library"](packaged.resolve())
            except NATIVE["BuildError"] as error:
                without_kernels(str(error))


class WheelForEveryPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """Return a tag for one platform: the kernels are loaded with ctypes, which any Python does."""
        return super().get_tag() if self.root_is_pure else ("py3", "none", super().get_tag()[2])


class WithKernels(Distribution):
    @functools.cache  # noqa: B019
    def has_ext_modules(self) -> bool:
        if why := NATIVE["why_not_here"]():
            without_kernels(why)
        return not why


def without_kernels(why: str) -> None:
    print(f"late-interaction is installed without its CPU kernels, and computes in PyTorch: {why}", file=sys.stderr)


with tempfile.TemporaryDirectory() as build:  # two installations from one folder do not meet in it
    setup(
        cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelForEveryPython},
        distclass=WithKernels,
        options={"build": {"build_base": build}, "egg_info": {"egg_base": build}},
    )
