"""``filip new`` and ``make run`` on sixty photographs that somebody else took, in the shapes in which people have them.

They are stamps of Tux Paint (Debian's tuxpaint-stamps-default): cut-out photographs of foods and animals, each with a
text file of its name in many languages. ``emoji``, the model that the training starts from, knows few of the names.
"""

import csv
import functools
import http.server
import json
import re
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.support.processes import run_well
from tests.support.snakemake_runs import environment_of, run_study, write_clone

STAMPS = Path("/usr/share/tuxpaint/stamps")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not STAMPS.is_dir(), reason="needs photographs: apt-get install tuxpaint-stamps-default"),
]


def photographs() -> list[tuple[Path, str]]:
    """Return sixty pictures with their English names, of foods and animals in turn."""
    kinds = [sorted(STAMPS.glob(f"{kind}/**/*.png")) for kind in ("food", "animals")]
    files = [file for pair in zip(*kinds, strict=False) for file in pair if file.with_suffix(".txt").is_file()]
    names = [file.with_suffix(".txt").read_text(encoding="utf-8").splitlines()[0].rstrip(".") for file in files]
    return list(zip(files, names, strict=True))[:60]


def rewritten(folder: Path) -> list[tuple[Path, str]]:
    """Write the sixty as JPEGs below the folder, as a camera would number them."""
    folder.mkdir(parents=True)
    rows = []
    for number, (file, name) in enumerate(photographs()):
        picture = Image.open(file).convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        target = folder / f"P{number:03}.jpeg"
        page.convert("RGB").save(target)
        rows.append((target, name))
    return rows


def table(folder: Path) -> Path:
    rows = rewritten(folder / "My photos")
    with open(folder / "My photos/list.csv", "w", newline="", encoding="utf-8-sig") as file:
        lines = [(path.name, name, "A. Stranger") for path, name in rows]
        csv.writer(file, delimiter=";").writerows([("Photo No.", "What it shows", "Who"), *lines])
    shutil.copy(folder / "My photos/list.csv", folder / "My photos/list (copy).csv")
    return folder / "My photos/list.csv"


def many_lines(folder: Path) -> Path:
    (folder / "stamps").mkdir(parents=True)
    for file, _ in photographs():
        shutil.copy(file, folder / "stamps")
        shutil.copy(file.with_suffix(".txt"), folder / "stamps")
    return folder / "stamps"


def classes(folder: Path) -> Path:
    for file, _ in photographs():
        place = folder / "by kind" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return folder / "by kind"


def metadata(folder: Path) -> Path:
    rows = rewritten(folder / "hf")
    lines = [json.dumps({"file_name": path.name, "text": name}) for path, name in rows]
    (folder / "hf/metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "hf"


def urls(folder: Path) -> Path:
    rows = rewritten(folder / "www")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder / "www")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lines = [f"http://127.0.0.1:{server.server_port}/{path.name}\t{name}" for path, name in rows]
    (folder / "links.tsv").write_text("url\tcaption\n" + "\n".join(lines), encoding="utf-8")
    return folder / "links.tsv"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shape", [table, many_lines, classes, metadata, urls])
def test_a_study_of_a_strangers_pictures_ends_in_its_report(tmp_path: Path, shape) -> None:
    clone, pictures = write_clone(tmp_path / "filip"), shape(tmp_path)
    given = ["new", "mine", str(pictures), "gpus=0"]
    done = run_well("-m", "filip", *given, cwd=clone, variables=environment_of(clone))
    ((trained, tested),) = re.findall(r"(\d+) pictures to train on \(fewer than 1,000 .* (\d+) held out", done.stderr)
    if shape is urls:  # split by a hash of the URL, which has a port
        assert abs(int(tested) - 30) <= 12 and int(trained) + int(tested) == 60
    else:  # two names are one picture's in one shape
        assert 58 < int(trained) == int(tested) <= 60
    assert ("captions, such as" in done.stderr) == (shape is many_lines)
    for card in clone.glob("data/mine*.yaml") if shape is urls else ():  # loopback is refused otherwise
        card.write_text(card.read_text() + "allow_private_hosts: true\n")
    study = clone / "workflow/config/mine.yaml"
    config = yaml.safe_load(study.read_text())
    config["train"]["overrides"].append("max_steps=20")  # what is learned is not the question
    if shape is classes:
        config["data"] = {"parts": 2, "score": {"keep": ["phash % 5 <> 0"]}}
    study.write_text(yaml.safe_dump(config))
    done = run_study(cwd=clone, config=study, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    results = clone / "results/mine"
    if shape is classes:
        for manifest in results.glob("data/*/manifest.json"):
            described = json.loads(manifest.read_text())
            (stage,) = [stage for stage in described["stages"] if stage["stage"] == "score"]
            assert described["captions"]["images"] == stage["out"] == stage["in"] - stage["dropped"]["phash % 5 <> 0"]
    report = (results / "report.html").read_text(encoding="utf-8")
    (first,) = re.findall(r"<p>(After training, .*?)</p>", report)
    after, total, before = map(int, re.findall(r"(\d+) of (\d+) held-out captions .*model before, (\d+);", first)[0])
    assert "Holm" not in report.partition("All numbers")[0] and "filip search" in report
    assert (results / "explore.html").is_file() and (results / "export/filip/README.md").is_file()

    # counted anew from the ranks that the evaluation kept: a caption of several pictures finds any of them
    among = {"ten": 10, "five": 5, "first": 1}[re.findall("ten|five|first", first)[0]]
    halves = ["mine_half_1", "mine_half_2"]
    tested_by = {"mine": "filip"} if shape is urls else dict(zip(halves, halves, strict=True))
    counted = {"before": [0, 0], "after": [0, 0]}
    for card, run in tested_by.items():
        for when, model in (("before", "before"), ("after", run)):
            kept = (results / "eval" / model / "retrieval").glob("*.npz")  # a file for each card
            outcomes = {key: values for file in kept for key, values in np.load(file).items()}
            hits, images = outcomes[f"{card}.t2i/r{among}"] >= 0.5, outcomes[f"{card}.t2i/cluster"].tolist()
            found: dict[str, bool] = {}
            for place, (image, hit) in enumerate(zip(images, hits, strict=True)):
                caption = caption_of(clone, shape, image, place - images.index(image))
                found[caption] = found.get(caption, False) or bool(hit)
            counted[when] = [counted[when][0] + sum(found.values()), counted[when][1] + len(found)]
    assert counted == {"before": [before, total], "after": [after, total]}


def caption_of(clone: Path, shape, image: str, number: int) -> str:
    """Return a caption of a picture, from the list that `filip new` wrote, or from the tar of what was downloaded."""
    if shape is urls:
        (shard,) = (clone / "results/mine/data/mine_held_out/shards").glob("*.tar")
        with tarfile.open(shard) as tar:
            return tar.extractfile(f"{Path(image).stem}.txt").read().decode()
    listed = json.loads((clone / "data/mine.json").read_text())["images"]
    return {entry["filename"]: entry["sentences"][number]["raw"] for entry in listed if entry["filename"] == image}[
        image
    ]
