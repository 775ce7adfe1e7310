"""A study: trainings, their data, evaluations and tables."""

from filip.study.study import Study, load_study, resolve
from filip.study.table_kinds import PROTOCOLS, TABLES

__all__ = ["PROTOCOLS", "TABLES", "Study", "load_study", "resolve"]
