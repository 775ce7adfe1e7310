"""Load entries of a registry that other installed packages offer by an entry point."""

from __future__ import annotations

from collections.abc import Container
from importlib.metadata import entry_points
from typing import TypeVar

from filip.common.errors import UserError

Kind = TypeVar("Kind")


def load_plugins(group: str, kind: type[Kind], known: Container[str]) -> dict[str, Kind]:
    """Return the objects that the installed packages offer under the entry point group ``group``, by name.

    Raises UserError for a name that is in ``known`` or given twice, an entry that cannot be loaded, and one that is not
    a ``kind``.
    """
    found: dict[str, Kind] = {}
    for entry in entry_points(group=group):
        where = f"the entry point {entry.name} = {entry.value} of the group {group}"
        if entry.name in known or entry.name in found:
            raise UserError(f"{where}: that name exists already; rename it")
        try:
            loaded = entry.load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"{where} cannot be loaded: {error}; repair or uninstall the package") from error
        if not isinstance(loaded, kind):
            raise UserError(f"{where} is a {type(loaded).__name__}; it must be a {kind.__module__}.{kind.__name__}")
        found[entry.name] = loaded
    return found
