"""``filip new``: from a folder of pictures as people have them to explorer, table and export, with no YAML by hand."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image

from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.data.cards import load_source
from filip.data.prepare import PrepareConfig
from filip.data.prepare import main as prepare
from filip.eval.cards import load_card
from filip.eval.formats import open_set
from filip.loading.config import Source
from filip.new import New, main
from filip.study import load_study
from filip.train.config import TrainConfig
from filip.train.engine import resolve_batching
from filip.train.training_data import fit_to_pairs
from tests.eval.miniature import picture
from tests.support.processes import run_well
from tests.support.snakemake_runs import environment_of, run_study, write_clone

ROOT = Path(__file__).resolve().parents[1]
ODD = ["Übung", "ein Bild", "a#b", "100%25", "-rf", "x" * 120, "日本", "two\nlines", "semi;colon", "quote'd"]
SUFFIXES = [".png", ".jpg", ".JPG", ".webp"]


def album(folder: Path) -> Path:
    """Write 149 files: 130 pictures with odd names in nested folders, and what else is in such a folder."""
    scenes = sorted((ROOT / "docs/scenes").glob("*.png"))
    rows = []
    for number in range(130):
        scene = scenes[number % len(scenes)]
        place = folder.joinpath(*["tief"] * (number % 15)) / f"{ODD[number % 10]} {number}{SUFFIXES[number % 4]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(scene).convert("RGB").resize((60 + number, 190 - number)).save(place)
        rows.append((place.relative_to(folder), scene.with_suffix(".txt").read_text().strip()))
    for number in range(4):
        (folder / f"broken {number}.jpg").write_bytes(b"\xff\xd8 nothing")
        rows.append((Path(f"broken {number}.jpg"), "a broken thing"))
        (folder / f"raw {number}.CR2").write_bytes(b"II*\0" + bytes(100))
    for number in range(3):
        (folder / f"phone {number}.heic").write_bytes(bytes(100))
    (folder / "link.png").symlink_to(rows[0][0])
    (folder / "out.jpg").symlink_to("/etc/passwd")
    (folder / "dangling.jpg").symlink_to("nowhere")
    for name in ("Thumbs.db", "empty.png", "notes.pdf", "video.mp4"):
        (folder / name).write_bytes(b"")
    rows.append((Path("missing.jpg"), "a thing that is not there"))
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])
    return folder


@pytest.mark.smoke
@pytest.mark.system
@pytest.mark.timeout(1800)  # two minutes of two idle cores
def test_three_commands_lead_from_a_folder_to_explorer_table_and_export(tmp_path: Path) -> None:
    clone, photos = write_clone(tmp_path / "filip"), album(tmp_path / "Meine Fotos")
    assert sum(1 for file in photos.rglob("*") if file.is_symlink() or file.is_file()) == 149

    def filip(*arguments: str) -> str:
        done = run_well("-m", "filip", *arguments, cwd=clone, variables=environment_of(clone))
        return done.stdout + done.stderr

    said = filip("new", "mine", str(photos))
    for left_out in ("4 .cr2", "3 .heic", "missing.jpg", "a link out of the folder", "make run STUDY=mine"):
        assert left_out in said
    study = clone / "workflow/config/mine.yaml"
    done = run_study(cwd=clone, config=study, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    results = clone / "results/mine"
    assert (results / "explore.html").stat().st_size > 100_000
    table = (results / "tables/retrieval.md").read_text()
    assert "| FILIP on mine |" in table and "emoji, before the training" in table
    card = (results / "export/filip/README.md").read_text()
    assert "license: cc-by-sa-4.0" in card and "Pictures of Meine Fotos" in card
    assert (results / "export/filip/emoji_attribution.json").is_file()
    hits = filip("search", str(photos), "a snake", "model=results/mine/models/filip.safetensors", "paths=true")
    assert str(photos) in hits


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("data", "eval", "workflow/config"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> None:
    run_command(main, New, argv=list(arguments), words=("name", "pictures"))


def test_of_forty_each_half_is_held_out_from_a_model_of_the_other_and_equal_pictures_are_on_one_side(
    checkout: Path,
) -> None:
    photos = checkout / "photos"
    photos.mkdir()
    for number in range(40):
        picture(number // 2, 48).save(photos / f"{number}.png")  # each twice
        (photos / f"{number}.txt").write_text(f"picture {number // 2}\n")
    run("mine", "photos", "gpus=0")
    tested = []
    for name in ("mine_half_1", "mine_half_2"):
        listed = json.loads((checkout / f"data/{name}.json").read_text())["images"]
        splits = {image["filename"]: image["split"] for image in listed}
        assert [splits[f"{n}.png"] for n in range(0, 40, 2)] == [splits[f"{n}.png"] for n in range(1, 40, 2)]
        held_out = open_set(load_card(name), ".")
        tested.append({held_out.name_of(n) for n in range(len(held_out))})
        assert len(tested[-1]) == 20
        assert {splits[name] for name in tested[-1]} == {"test"}
    assert not tested[0] & tested[1]
    assert load_source("mine").images == "data/mine.json"
    study = load_study("workflow/config/mine.yaml")
    assert study.training("filip")["sources"] == ["mine"] and "filip" not in study.models
    assert {run: study.evaluated_on(run)["retrieval"] for run in study.models} == {
        "before": ["mine_half_1", "mine_half_2"],
        "mine_half_1": ["mine_half_1"],
        "mine_half_2": ["mine_half_2"],
    }
    with pytest.raises(SystemExit):
        run("mine", "photos")


@pytest.mark.parametrize("marked", ["folders", "column"])
def test_pictures_that_are_marked_as_a_test_are_held_out_and_never_trained_on(checkout: Path, marked: str) -> None:
    photos, rows = checkout / "photos", []
    for number in range(12):
        split = "train" if number < 8 else "test" if number < 10 else "val"
        name = f"{split if marked == 'folders' else 'all'}/{number}.png"
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, 48).save(photos / name)
        rows.append((name, f"picture {number}", *([split.upper()] if marked == "column" else [])))
    with open(photos / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "caption", "Partition")[: len(rows[0])], *rows])
    run("mine", "photos", "gpus=0")
    listed = json.loads((checkout / "data/mine.json").read_text())["images"]
    splits = {int(Path(image["filename"]).stem): image["split"] for image in listed}
    assert splits == dict.fromkeys(range(8), "train") | {8: "test", 9: "test"}
    held_out = open_set(load_card("mine"), ".")
    assert sorted(Path(held_out.name_of(n)).stem for n in range(len(held_out))) == ["8", "9"]


def prepared(name: str) -> list[int]:
    """Return which pictures of a list of URLs are taken by a card."""
    prepare(PrepareConfig(name, f"{name}.parquet"))
    return sorted(int(Path(url).stem) for url in pq.read_table(f"{name}.parquet")["url"].to_pylist())


def test_rows_that_a_list_of_urls_marks_as_a_test_are_held_out(checkout: Path) -> None:
    rows = "".join(f"http://a.org/{n}.jpg,a dog {n},{'TEST' if n % 4 == 0 else 'Train'}\n" for n in range(200))
    (checkout / "pairs.csv").write_text("link,alt,Split\n" + rows)
    run("mine", "pairs.csv", "gpus=0")
    assert prepared("mine") == [n for n in range(200) if n % 4]
    assert prepared("mine_held_out") == [*range(0, 200, 4)]


@pytest.mark.parametrize(("form", "rows", "held_out"), [(".csv", 200, 50), (".csv", 2, 1), (".jsonl", 3, 1)])
def test_a_list_of_urls_is_split_by_its_addresses(
    checkout: Path, form: str, rows: int, held_out: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names, records = ("link", "alt"), [(f"http://a.org/{n}.jpg", f"Böller {n} Kč") for n in range(rows)]
    records += records[:1] if rows > 3 else []  # the same again is on the same side
    csv_lines = map(",".join, [names, *records])
    json_lines = (json.dumps(dict(zip(names, record, strict=True))) for record in records)
    text = "\n".join(csv_lines if form == ".csv" else json_lines)
    (checkout / f"pairs{form}").write_bytes(text.encode("cp1250"))
    run("mine", f"pairs{form}", "gpus=8", "start=none")
    trained, tested = prepared("mine"), prepared("mine_held_out")
    assert sorted(trained + tested) == [*range(rows)] and held_out - 15 < len(tested) < held_out + 15
    assert "note: the card expects" not in capsys.readouterr().err
    study = load_study("workflow/config/mine.yaml")
    assert study.config["train"]["experiment"] == "one_node" and study.config["launch"]["ranks_per_node"] == 8
    assert study.sources == ["mine", "mine_held_out"] and study.training("filip")["sources"] == ["mine"]
    assert [*study.runs] == ["clip", "filip"]


def test_what_cannot_be_split_or_has_no_captions_is_refused(checkout: Path) -> None:
    (checkout / "photos").mkdir()
    picture(0, 48).save(checkout / "photos/0.png")
    with pytest.raises(UserError, match="no captions that are understood"):
        main(New(name="mine", pictures="photos"))
    (checkout / "photos/0.txt").write_text("a dog\n")
    with pytest.raises(UserError, match="too few to hold some out"):
        main(New(name="mine", pictures="photos"))


@pytest.mark.parametrize(
    ("pairs", "ranks", "batch", "steps", "warm_up"),
    [(117, 1, 8, 300, 30), (117, 2, 8, 300, 30), (20, 1, 2, 300, 30), (5, 1, 2, 80, 8), (100_000, 8, 1024, 300, 30)],
)
def test_batch_steps_and_warm_up_fit_the_pairs(
    pairs: int, ranks: int, batch: int, steps: int, warm_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filip.train.training_data.index_source", lambda source, cache: range(pairs))
    config = TrainConfig(global_batch="auto", epochs=2, gradient_cache=128)
    config.data.sources = [Source("shards")]
    sentence = fit_to_pairs(config, SimpleNamespace(world_size=ranks))  # type: ignore[arg-type]
    assert config.global_batch == batch and resolve_batching(config, ranks).global_batch == batch
    assert (config.max_steps, config.epochs, config.optimizer.warmup_steps) == (steps, None, warm_up)
    assert f"{pairs:,} pairs, so batches of {batch}" in sentence
    assert fit_to_pairs(config, SimpleNamespace(world_size=ranks)) == ""  # type: ignore[arg-type]
