"""Find the files that a person edits: source cards, benchmark cards, prompts, published numbers, DeepSpeed settings.

They are in ``data/``, ``eval/`` and ``ds_configs/`` at the top of the repository. A wheel carries these folders next to
this file (``setup.py`` maps them there), so that an installed FILIP knows every card from any working directory.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filip.common.errors import UserError, nearest
from filip.common.files import near_path


@dataclass(frozen=True)
class Kind:
    """One kind of file: ``<folder>/<name><suffix>``."""

    title: str
    folder: str
    suffix: str = ".yaml"
    include: str = "*"
    exclude: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        return fnmatch(name, self.include) and not any(fnmatch(name, pattern) for pattern in self.exclude)


KINDS = {
    "source": Kind("source card", "data"),
    "benchmark": Kind("benchmark card", "eval", exclude=("prompts*", "paper_tables*")),
    "prompts": Kind("prompt file", "eval", include="prompts*"),
    "published": Kind("file of published numbers", "eval", include="paper_tables*"),
    "deepspeed": Kind("DeepSpeed settings file", "ds_configs", suffix=".json"),
}
WEIGHTS = ("emoji",)  # models that come with the package; NAME.md next to the file is its card
_LISTED = 12  # names in a message; if there are more, it says where they are
_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def find(kind: str, name: str | Path) -> Path:
    """The file of a card or setting.

    kind: a key of :data:`KINDS`. name: a bare name (``cc3m``), or a path, which has the suffix of its kind.
    A bare name is looked for in the kind's folder, first below the working directory, then in the package. A path is
    taken literally; one into the kind's folder that does not exist (``eval/prompts.yaml`` from an empty folder)
    is looked for in the package as well.
    Raises UserError with the name, the places that were searched, and the known names.
    """
    of = KINDS[kind]
    candidates = list(_candidates(of, Path(name)))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    available = names(kind)
    similar = near_path(name)
    near = list(dict.fromkeys([*([similar] if similar else []), *nearest(Path(name).stem, available, 3)]))
    lie = ", ".join(available) if len(available) <= _LISTED else f"{len(available)}, all in {shipped(of.folder)}"
    raise UserError(
        f"there is no {of.title}, file or folder {str(name)!r}"
        + (f"; did you mean {' or '.join(map(repr, near))}? The {of.title}s are " if near else f"; {of.title}s are ")
        + f"{lie}"
    )


def read_yaml(file: Path) -> Any:
    """Return the content of a YAML file. Raises UserError if it is not YAML."""
    import yaml

    if file.suffix.lower() not in (".yaml", ".yml"):
        kinds = "a list or a table is CSV (which spreadsheets save), TSV, JSON lines or Parquet"
        raise UserError(f"{file} is not a card, which is a YAML file; {kinds}")
    # ten times as fast, where PyYAML was built with it
    loader, text = getattr(yaml, "CSafeLoader", yaml.SafeLoader), file.read_text(encoding="utf-8")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise UserError(f"{file} repeats a part by *NAME, of which a few lines may become gigabytes: write it out")
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error


def names(kind: str) -> list[str]:
    """Return all names of a kind that :func:`find` finds from the working directory, sorted."""
    of = KINDS[kind]
    return sorted({f.stem for folder in folders(kind) for f in folder.glob(f"*{of.suffix}") if f.stem in of})


def folders(kind: str) -> list[Path]:
    """Return the folders in which names are looked for: below the working directory, then in the package."""
    folder = KINDS[kind].folder
    return [Path(folder), shipped(folder)]


def shipped(folder: str) -> Path:
    """``data``, ``eval`` or ``ds_configs`` as the package has it: inside a wheel, or at the top of a checkout."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _CHECKOUT / folder


def weights(model: str) -> str:
    """Return the file of a model that comes with the package, if it is the name of one; else ``model`` itself."""
    return str(_PACKAGE / f"{model}.safetensors") if model in WEIGHTS and not Path(model).exists() else model


def _candidates(kind: Kind, name: Path) -> Iterator[Path]:
    if name.suffix in (kind.suffix, ".yml"):
        yield name
        if name.parent == Path(kind.folder):
            yield shipped(kind.folder) / name.name
        return
    if name.is_file():  # a file that the user has named
        yield name
        return
    yield Path(kind.folder) / f"{name}{kind.suffix}"
    yield shipped(kind.folder) / f"{name}{kind.suffix}"


def page_style() -> str:
    """Return the style sheet that all pages of the project share."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def sealed(page: str) -> str:
    """Return a page with a content security policy: it runs its own scripts, by their hashes, and asks nobody.

    Attributes ``style=`` are allowed, which figures have, and pictures inside the page.
    """
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in dict.fromkeys(re.findall(rf"<{tag}(?: type=\"text/css\")?>(.*?)</{tag}>", page, re.DOTALL))
        )
        or "'none'"
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src-elem {hashes['style']}; "
        f"style-src-attr 'unsafe-inline'; img-src data:; connect-src 'none'"
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return re.sub(r'<meta charset="utf-8">', lambda found: found[0] + meta, page, count=1)
