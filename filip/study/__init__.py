"""A study: what is trained on what, how it is evaluated, and which tables show it."""

from filip.study.grid import with_seeds
from filip.study.study import Study, load_study, resolve
from filip.study.tables import PROTOCOLS, TABLES

__all__ = ["PROTOCOLS", "TABLES", "Study", "load_study", "resolve", "with_seeds"]
