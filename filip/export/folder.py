"""Write an exported folder completely or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filip.errors import UserError
from filip.files import naming


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Yield a folder next to ``out`` to write to, which becomes ``out`` on success and is removed on failure.

    Raises UserError if ``out`` exists and is not an empty folder: nothing of the user's is overwritten.
    """
    out = Path(out).absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"out={out} exists already; delete it or give another folder")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with naming(out):
        try:
            yield part
            for file in part.rglob("*"):  # safetensors lets only the owner read what it writes
                file.chmod(0o755 if file.is_dir() else 0o644)
            if out.is_dir():
                out.rmdir()
            part.rename(out)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
