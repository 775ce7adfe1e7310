"""An export to a disk without room: one sentence that names the file, and nothing half-written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from filip.cli.command import run_command
from filip.export.__main__ import Export, export
from filip.models import ModelConfig
from tests.data.downloads import disk_with_room_for


@pytest.mark.parametrize(
    ("to", "rooms"),
    [
        ("safetensors", (3_000, 600_000)),
        ("hf", (3_000, 600_000)),
        # torch's exporter takes seconds each time, the last one included
        pytest.param("onnx", (600_000,), marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    to: str, rooms: tuple[int, ...], saved: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def change(config: ModelConfig) -> None:
        if to == "onnx":
            config.image.layers = config.text.layers = 1

    model = saved(change)
    out = tmp_path / "exported" / ("m.safetensors" if to == "safetensors" else "folder")
    arguments = [f"model={model}", f"to={to}", f"out={out}"]
    for room in rooms:
        with disk_with_room_for(room), pytest.raises(SystemExit) as stopped:
            run_command(export, Export, argv=arguments)
        said = capfd.readouterr().err
        assert stopped.value.code == 2 and "Traceback" not in said, room
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert str(tmp_path / "exported") in error and "File too large" in error, room
        assert not list((tmp_path / "exported").iterdir()), room
    if to != "onnx":
        run_command(export, Export, argv=arguments)
        assert out.exists()
