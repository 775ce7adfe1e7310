"""A study: trainings, their data, evaluations and tables."""

from filip.study.grid import with_seeds
from filip.study.paper_tables import PROTOCOLS, TABLES
from filip.study.study import Study, load_study, resolve

__all__ = ["PROTOCOLS", "TABLES", "Study", "load_study", "resolve", "with_seeds"]
