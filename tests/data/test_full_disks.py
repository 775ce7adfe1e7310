"""Full disks, for every stage that writes: one sentence, nothing lost, and a rerun continues."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filip.cli.command import run_command
from filip.common.files import sha256_of
from filip.data.funnel import Fragment, write_fragment
from filip.data.shard_set import TAR_SHA256
from filip.data.sidecar import read_sidecar
from tests.data.downloads import disk_with_room_for
from tests.data.own_images import text_beside
from tests.data.pair_shards import write_pairs

ROWS = 400


@dataclass
class Command:
    """One stage: its module, and its arguments, of which ``OUT`` is the folder to fill."""

    name: str
    arguments: list[str]

    def run(self, out: Path) -> None:
        module = import_module(f"filip.data.{self.name}")
        argv = [argument.replace("OUT", str(out)) for argument in self.arguments]
        run_command(module.main, getattr(module, f"{self.name.title().replace('_', '')}Config"), argv=argv)


CARD = """
name: t
text_rules: {language: false, max_repeats: 0}
image_rules: {min_side: 0}
download: {image_size: 64, samples_per_shard: 2, processes: 1}
back_translation: {engine: none, pivots: []}
"""


def arguments(folder: Path) -> dict[str, list[str]]:
    """Return the arguments of every stage, for a little data below ``folder``."""
    captions = [f"a photo of {n} dogs at the lake {n * 7919 % 5003}" for n in range(ROWS)]
    rows = {"url": [f"https://a.org/{n}" for n in range(ROWS)], "caption": captions}
    listed = folder / "l.parquet"
    pq.write_table(pa.table(rows), listed)
    (folder / "c.yaml").write_text(CARD)
    text_beside(folder / "photos")
    pairs = write_pairs(folder, [20, 20])
    for shard in range(2):
        about = {
            "url": [f"https://a.org/{n}" for n in range(20)],
            "caption": [row["captions"][0] for row in read_sidecar(pairs.sidecar(shard))],
            "key": pairs.keys[20 * shard : 20 * shard + 20],
            "status": ["success"] * 20,
            "error_message": pa.nulls(20, pa.string()),
            **dict.fromkeys(("width", "height", "original_width", "original_height"), [20] * 20),
            "sha256": ["0" * 64] * 20,
        }
        table = pa.table(about).replace_schema_metadata({TAR_SHA256: sha256_of(pairs.tar(shard))})
        pq.write_table(table, pairs.tar(shard).with_suffix(".parquet"))
        pairs.tar(shard).with_name(f"{shard:05d}_stats.json").write_text("{}")
    for stage, given, left in (("text_rules", ROWS, 40), ("download", 40, 40), ("translate", 40, 40)):
        dropped = {"not_english": given - left}
        write_fragment(folder / f"{stage}.json", Fragment(stage, "t", given, left, dropped))
    kept = folder / "kept.parquet"
    pq.write_table(pa.table({name: values[:40] for name, values in rows.items()}), kept)
    card, shards, sidecars = (f"source={folder}/c.yaml", f"shards={folder}/shards", f"captions={folder}/captions")
    funnels = ",".join(f"{folder}/{stage}.json" for stage in ("text_rules", "download", "translate"))
    made = [card, f"list={listed}", f"kept={kept}", shards, sidecars, f"funnels=[{funnels}]"]
    single = ["threads=1", "processes=1"]
    return {
        "prepare": [f"source={listed}", "out=OUT/l.parquet", "funnel=OUT/f.json"],
        "text_rules": [card, f"list={listed}", "out=OUT/k.parquet", "dropped=OUT/d.parquet", "funnel=OUT/f.json"],
        "ingest": [card, f"images={folder}/photos", "out=OUT/shards", "funnel=OUT/f.json", *single],
        "translate": [card, shards, "out=OUT/captions", "funnel=OUT/f.json", *single],
        "score": [shards, sidecars, "out=OUT/scored", "processes=1"],
        "manifest": [*made, "out=OUT/manifest.json"],
        "funnel": [f"fragments=[{funnels}]", "out=OUT/funnel.json"],
    }


# test_download_faults.py has the download
STAGES = ["prepare", "text_rules", "ingest", "translate", "score", "manifest", "funnel"]


def files_of(folder: Path) -> dict[str, Any]:
    """Return what is in a folder, without what depends on when it was made."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.suffix in (".tar", ".parquet") else None
        for path in paths
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_without_room_is_one_sentence_and_the_next_run_goes_on(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, out = Command(stage, arguments(tmp_path)[stage]), tmp_path / "out"
    for room in (0, 4096, 16384):
        try:
            with disk_with_room_for(room):
                command.run(out)
        except SystemExit as stopped:
            said = capsys.readouterr().err
            assert stopped.code == 2 and "Traceback" not in said, said
            (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
            assert error == said.splitlines()[-1] and str(tmp_path) in error, said
        else:
            assert room, "files had room in nothing"
    command.run(out)
    command.run(tmp_path / "whole")
    capsys.readouterr()
    assert files_of(out) == files_of(tmp_path / "whole")
