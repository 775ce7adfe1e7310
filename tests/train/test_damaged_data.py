"""A damaged tar ends a training with the code for machines; put back, the training goes on as if nothing had been."""

import shutil
from pathlib import Path

import pytest

from filip.common.errors import DamagedFileError
from filip.common.tar_index import scan_tar
from filip.train.launcher_env import MACHINE_FAILED
from tests.data.test_streaming import served
from tests.support.launched_ranks import Ranks
from tests.support.squares import write_shards
from tests.support.training import losses, run_many, same_weights, train_arguments
from tests.train.test_resume import ranks_end


def test_the_code_of_damage_is_the_machines() -> None:
    assert DamagedFileError.exit_code == MACHINE_FAILED


@pytest.mark.slow
def test_two_ranks_end_at_a_damaged_tar_and_go_on_to_the_bit_once_it_is_whole(squares: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(squares, data, ignore=shutil.ignore_patterns("_index"))
    tar = sorted((data / "shards").glob("*.tar"))[-1]
    content = tar.read_bytes()

    def arguments(name: str, *more: str) -> list[str]:
        return train_arguments(data, tmp_path / name, "max_steps=8", "data.reader_groups=2", *more)

    started = [arguments("whole")[2:], [*arguments("legs")[2:], "stop_after=4"]]
    assert run_many(2, started, tmp_path / "log0") == [0, 85]
    half, header = len(content) // 2, scan_tar(tar)[0][20].offset - 512
    damages = (content[:half], content[:header] + bytes(512) + content[header + 512 :])
    for number, (damaged, fault) in enumerate(zip(damages, ("truncated", "corrupt"), strict=True), 1):
        tar.write_bytes(damaged)
        log = tmp_path / f"log{number}"
        assert run_many(2, [arguments("legs")[2:], arguments(f"new{number}")[2:]], log) == [MACHINE_FAILED] * 2
        assert f"the shard {tar} is damaged: {fault}" in log.read_text() and "Traceback" not in log.read_text()
    tar.write_bytes(content.replace(b"PNG", b"JPG"))  # of each picture: a third of the data
    ranks = Ranks(2, arguments("pictures", "max_steps=200"), tmp_path / "log")
    assert MACHINE_FAILED in ranks_end(ranks)
    assert f"were replaced, most of them in {tar}. Restore the shard" in ranks.text()
    tar.write_bytes(content)
    assert run_many(2, [arguments("legs")[2:]], tmp_path / "log9") == [0]
    assert same_weights(*(tmp_path / name / "model.safetensors" for name in ("whole", "legs")))


@pytest.mark.slow
def test_ten_streamed_legs_of_a_fifth_of_an_epoch_end_with_the_weights_of_an_undisturbed_local_training(
    tmp_path: Path,
) -> None:
    write_shards(tmp_path / "data", shards=5, per_shard=48)
    with served(tmp_path / "data") as address:
        place = f"data.sources=[{{shards: '{address}/shards/{{00000..00004}}.tar', captions: {address}/captions}}]"
        room = 2.5 * (tmp_path / "data/shards/00000.tar").stat().st_size / 1e9

        def arguments(name: str, *more: str) -> list[str]:  # 240 pairs: ten steps an epoch
            return train_arguments(tmp_path / "data", tmp_path / name, *more)[2:]

        streamed = arguments("legs", place, f"data.cache={tmp_path}/cache", f"data.cache_gb={room}")
        legs = [[*streamed, f"stop_after={2 * leg}"] for leg in range(1, 10)]
        codes = run_many(2, [arguments("whole"), *legs, streamed], tmp_path / "log")
    assert codes == [0, *[85] * 9, 0] and 1 <= len(list(tmp_path.glob("cache/tars/*.tar"))) <= 2
    assert same_weights(*(tmp_path / name / "model.safetensors" for name in ("whole", "legs")))
    assert losses(tmp_path / "legs") == losses(tmp_path / "whole")
