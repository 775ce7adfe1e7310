"""A hub that does not answer is asked once, and the message names the wait."""

import os
import socket
from collections.abc import Iterator

import pytest

from filip.common import hub
from filip.common.errors import UserError
from tests.eval.miniature import picture
from tests.support.processes import run_python


@pytest.fixture
def silent() -> Iterator[str]:
    """Yield the address of somebody who takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_a_model_of_a_hub_that_does_not_answer_is_one_sentence(silent: str, tmp_path) -> None:
    """This runs in a separate process: huggingface_hub reads its settings when it is imported."""
    picture(0).save(tmp_path / "a.png")
    program = "import sys; from filip.__main__ import main; main()"
    command = ["index", "build", "model=hf:nobody/nothing", f"images={tmp_path}", f"out={tmp_path}/index"]
    variables = {**os.environ, "HF_ENDPOINT": silent, "HF_HOME": str(tmp_path / "cache")}
    result = run_python("-c", program, *command, variables=variables)
    assert result.returncode == 2
    waiting, error = result.stderr.splitlines()  # and none of the libraries' retries
    assert waiting.endswith(f"waiting for {silent}")
    assert error.startswith("error: transformers cannot load hf:nobody/nothing: ")
    assert f"({silent} cannot be reached: no answer within 5 seconds" in error


def test_what_is_on_this_machine_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda address: pytest.fail(f"{address} was asked"))
    with pytest.raises(UserError, match=r"^as it was$"), hub.hub_asked(local=True):
        raise UserError("as it was")
