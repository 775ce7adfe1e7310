"""The data that trainings of this folder see."""

from tests.train.conftest import squares  # noqa: F401
