"""Under DeepSpeed ZeRO 1, 2 and 3 on two ranks, a step equals the step of one process (see zero_ranks.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interaction.ranks import launch
from tests.interaction.zero_ranks import every_stage


@pytest.mark.slow
def test_every_stage_equals_one_process(tmp_path: Path) -> None:
    launch(every_stage, 2, tmp_path)
