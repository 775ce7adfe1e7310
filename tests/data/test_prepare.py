import bz2
import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filip.common.errors import UserError
from filip.data.cards import load_source, parse_card
from filip.data.download import download
from filip.data.prepare import PrepareConfig, main, prepare
from filip.sets.image_set import open_images
from filip.sets.layout import Reading
from tests.eval.miniature import picture
from tests.support.shards import zst


def run(tmp_path: Path, source: Path | str, **options) -> pa.Table:
    main(PrepareConfig(str(source), str(tmp_path / "list.parquet"), funnel=str(tmp_path / "f.json"), **options))
    assert not list(tmp_path.glob(".*")), "no scratch is left behind"
    return pq.read_table(tmp_path / "list.parquet")


def funnel(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "f.json").read_text())


def test_own_column_names_extra_and_reserved_columns(tmp_path: Path) -> None:
    named = {"link": "https://a.org/1.jpg", "alt": "hello", "caption": "another caption column"}
    reserved = {"width": 3, "_row_": 1, "_drop_reason_": "x", "score": 0.5}
    columns = {name: [value] for name, value in (named | reserved).items()}
    pq.write_table(pa.table({**columns, "when": pa.array([0], pa.timestamp("s"))}), tmp_path / "mine.parquet")
    table = run(tmp_path, tmp_path / "mine.parquet", url_column="link", caption_column="alt")
    row = {"url": named["link"], "caption": "hello", "source_caption": named["caption"], "source_width": 3}
    row |= {"source__row_": 1, "_drop_reason_": "x", "score": 0.5, "when": "1970-01-01 00:00:00"}
    assert table.to_pylist() == [row]
    assert run(tmp_path, tmp_path / "mine.parquet")["caption"].to_pylist() == [named["caption"]]


AS_PUBLISHED = {
    "laion.parquet": {"URL": "{}", "TEXT": "a dog runs", "WIDTH": 3},
    "datacomp.parquet": {"uid": "f0", "url": "{}", "text": "a dog runs", "original_width": 3},
    "wit.tsv": {"language": "en", "page_url": "https://en.org/x", "image_url": "{}",
                "caption_reference_description": "a dog runs"},
    "open_images.csv": {"ImageID": "01", "OriginalURL": "{}", "OriginalLandingURL": "https://f.org/x",
                        "Author": "Jo Li", "Title": "a dog runs"},
    "deutsch.csv": {"Nr": "7", "Adresse": "{}", "Legende": "a dog runs"},
}  # fmt: skip


@pytest.mark.parametrize("name", [*AS_PUBLISHED, "cc3m.tsv", "cc12m.tsv"])
def test_lists_are_read_as_they_are_published_without_settings(tmp_path: Path, name: str) -> None:
    urls = [f"https://a.org/{n}.jpg" for n in range(3)]
    rows = [{k: str(v).format(url) for k, v in AS_PUBLISHED.get(name, {}).items()} for url in urls]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    elif name in AS_PUBLISHED:
        separator = {"deutsch.csv": ";", "wit.tsv": "\t"}.get(name, ",")
        lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    else:
        cells = [("a dog runs", url) if name == "cc3m.tsv" else (url, "a dog runs") for url in urls]
        (tmp_path / name).write_text("".join("\t".join(pair) + "\n" for pair in cells))
    table = run(tmp_path, tmp_path / name)
    assert sorted(table["url"].to_pylist()) == urls and table["caption"].to_pylist() == ["a dog runs"] * 3


def test_a_condition_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption,n\nhttps://a.org/1.jpg,a dog,1\n")
    with pytest.raises(UserError, match=r"`where`.* take none"):
        run(tmp_path, tmp_path / "a.csv", where="n > 3")


def test_bad_rows_are_dropped_and_counted_headerless_card(tmp_path: Path) -> None:
    (tmp_path / "cc.tsv").write_text(
        "a cat\thttps://a.org/1.jpg\n"
        "only one field\n"
        "too\tmany\tfields\n"
        "\thttps://a.org/2.jpg\n"
        "no url\t\n"
        "relative\t/images/3.jpg\n"
        "other scheme\tftp://a.org/3.jpg\n"
        "this machine\tfile:///etc/passwd\n"
        "white space\thttps://a.org/a b.jpg\n"
        'a stray " quote\thttps://a.org/4.jpg\n'
    )
    (tmp_path / "cc.yaml").write_text("columns: [text, link]\nurl_column: link\ncaption_column: text\n")
    table = run(tmp_path, tmp_path / "cc.yaml", list=str(tmp_path / "cc.tsv"), shuffle=False)
    assert table["caption"].to_pylist() == ["a cat", 'a stray " quote']
    report = funnel(tmp_path)
    assert report["in"] == 10 and report["out"] == 2
    assert report["dropped"] == {"malformed_url": 4, "unreadable_line": 2, "no_caption": 1, "no_url": 1}


def test_yfcc_card_reads_the_published_file(tmp_path: Path) -> None:
    """The file has three lines in the published format: 25 fields, text URL-encoded, videos among the photographs."""
    card = load_source("yfcc100m")
    rows = []
    for number, (title, description, video) in enumerate(
        [
            ("The+old+bridge%2C+at+night", "In+%3Ca+href%3D%22x%22%3EVenice%3C%2Fa%3E%0A100%25+caf%C3%A9", "0"),
            ("DSC_0001", "", "0"),
            ("a+film", "", "1"),
        ]
    ):
        fields = {column: f"{column}{number}" for column in card.columns}
        fields |= {"title": title, "description": description, "is_video": video}
        fields["download_url"] = f"http://farm1.staticflickr.com/{number}.jpg"
        rows.append("\t".join(fields[column] for column in card.columns))
    with bz2.open(tmp_path / "yfcc100m_dataset.bz2", "wt") as file:
        file.write("\n".join(rows) + "\n")
    table = run(tmp_path, "yfcc100m", list=str(tmp_path / "yfcc100m_dataset.bz2"), shuffle=False)
    assert table.column_names == ["url", "caption", "photo_id", "license_name"]
    assert table["caption"].to_pylist() == ["The old bridge, at night. In  Venice \n100% café", "DSC_0001"]
    assert table["photo_id"].to_pylist() == ["photo_id0", "photo_id1"]
    assert funnel(tmp_path)["dropped"] == {"not_wanted": 1}
    given = {"list": str(tmp_path / "yfcc100m_dataset.bz2"), "caption_column": "user_name", "shuffle": False}
    assert run(tmp_path, "yfcc100m", **given)["caption"].to_pylist() == ["user_name0", "user_name1"]

    # OpenAI's subset: photographs by their identifiers, in another order, with one that is gone
    subset = tmp_path / "yfcc100m_subset_data.tsv.bz2"
    with bz2.open(subset, "wt") as file:
        file.write("7\tphoto_id7\th\n1\tphoto_id1\th\nan unreadable line\n")
    options = {"list": str(tmp_path / "yfcc100m_dataset.bz2"), "shuffle": False}
    table = run(tmp_path, "yfcc15m", subset=str(subset), **options)
    assert table["photo_id"].to_pylist() == ["photo_id1"]
    assert funnel(tmp_path)["dropped"] == {"not_wanted": 2} and funnel(tmp_path)["in"] == 3


def test_pd12m_card_reads_the_published_columns(tmp_path: Path) -> None:
    row = {"id": "00a", "url": "https://a.org/00a.jpeg", "s3_key": "images/00a.jpeg", "caption": "A street in fog"}
    row |= {"hash": "0cc175b9c0f1b6a831c399e269772661", "width": 3000, "height": 2000, "mime_type": "image/jpeg"}
    row |= {"license": "CC0", "source": "wikimedia commons"}
    for number in range(2):
        table = pa.Table.from_pylist([row | {"url": f"https://a.org/{number}.jpeg"}])
        pq.write_table(table, tmp_path / f"pd12m.{number:03d}.parquet")
    expected = {"caption": row["caption"], "license": "CC0", "source": row["source"]}
    rows = run(tmp_path, "pd12m", list=str(tmp_path / "pd12m.*.parquet")).to_pylist()
    assert rows == [{"url": f"https://a.org/{number}.jpeg"} | expected for number in range(2)]


def test_shuffle_is_a_permutation_that_depends_on_the_seed_alone(tmp_path: Path) -> None:
    urls = [f"https://a.org/{i}.jpg" for i in range(500)]
    pq.write_table(pa.table({"url": urls, "caption": ["x y"] * 500}), tmp_path / "in.parquet")
    first = run(tmp_path, tmp_path / "in.parquet")["url"].to_pylist()
    again = run(tmp_path, tmp_path / "in.parquet", threads=1)["url"].to_pylist()
    other = run(tmp_path, tmp_path / "in.parquet", seed=1)["url"].to_pylist()
    assert first == again != other and first != urls
    assert sorted(first) == sorted(other) == sorted(urls)


COLUMNS = "URL,TEXT,similarity,punsafe,lang\n"
LAION = [("0.31", "0.1", "en"), ("0.29", "0.1", "en"), ("0.4", "0.7", "en"), ("0.5", "", "de"), ("0.35", "0.2", "de")]


def laion(path: Path) -> Path:
    rows = [(f"https://a.org/{n}.jpg", f"picture {n}", *values) for n, values in enumerate(LAION)]
    if path.suffix == ".csv":
        path.write_text(COLUMNS + "".join(",".join(row) + "\n" for row in rows))
        return path
    columns: dict[str, Any] = dict(zip(COLUMNS.strip().split(","), zip(*rows, strict=True), strict=True))
    for name in ("similarity", "punsafe"):
        columns[name] = [float(value) if value else None for value in columns[name]]
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["l.csv", "l.parquet"])
@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("similarity > 0.3 and punsafe < 0.5", [0, 4]),
        ("Similarity >= 0.3 AND lang = 'en'", [0, 2]),
        ("lang = 'é' or similarity > 0.3 and similarity < 0.35", [0]),
        ("punsafe IS NULL or lang in ('similarity', 'de')", [3, 4]),
    ],
)
def test_rows_are_selected_by_what_the_list_has(tmp_path: Path, name: str, where: str, rows: list[int]) -> None:
    names = {"url_column": "URL", "caption_column": "TEXT", "shuffle": False}
    table = run(tmp_path, laion(tmp_path / name), where=where, **names)
    assert table["caption"].to_pylist() == [f"picture {n}" for n in rows]
    assert funnel(tmp_path)["dropped"] == {"not_wanted": len(LAION) - len(rows)}


def test_ids_of_64_bits_are_compared_exactly(tmp_path: Path) -> None:
    rows = "".join(f"https://a.org/{n}.jpg,picture {n},{2**53 + n}\n" for n in range(3))
    (tmp_path / "l.csv").write_text("url,caption,id\n" + rows)
    assert run(tmp_path, tmp_path / "l.csv", where=f"id = {2**53 + 1}")["caption"].to_pylist() == ["picture 1"]


def test_datacomp_s_hashes_of_bytes_hold(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    right = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    rows = {"url": ["a.png"] * 2, "caption": ["one", "two"], "sha256": [right, "0" * 64]}
    pq.write_table(pa.table(rows), tmp_path / "l.parquet")
    card = {"image_root": str(tmp_path), "list": str(tmp_path / "l.parquet"), "image_rules": {"min_side": 0}}
    card = parse_card({**card, "download": {"processes": 1, "threads": 1}}, tmp_path / "c.yaml")
    prepare(card, tmp_path / "list.parquet")
    done = download(tmp_path / "list.parquet", tmp_path / "shards", card)
    assert done is not None and (done.n_out, done.dropped) == (1, {"hash_mismatch": 1})


def test_a_row_that_says_the_same_of_the_same_url_is_taken_once(tmp_path: Path) -> None:
    lines = ["url,caption,n", "https://a.org/1,a dog,0", "https://a.org/2,a dog,1", "https://a.org/1,a dog,2"]
    (tmp_path / "l.csv").write_text("\n".join([*lines, "https://a.org/1,a cat,3", ",a dog,4"]))
    table = run(tmp_path, tmp_path / "l.csv", shuffle=False)
    assert table["n"].to_pylist() == ["0", "1", "3"]
    report = funnel(tmp_path)
    assert (report["in"], report["out"]) == (5, 3)
    assert report["dropped"] == {"no_url": 1, "repeated_row": 1}


def with_images(folder: Path) -> list[dict[str, str]]:
    """Write pictures, and return rows that name each by file and by URL; the last has no caption."""
    captions = ["a café; at night", "two dogs, running", "a single sign", ""]
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
    return [{"image": f"{n}.png", "url": f"https://a.org/{n}.png", "caption": c} for n, c in enumerate(captions)]


def delimited(rows: list[dict[str, str]], delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_bytes_of_parquet(rows: list[dict[str, str]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


SAME = {
    "semicolon.csv": lambda rows: delimited(rows, ";").encode("utf-8-sig"),
    "latin_1.csv": lambda rows: delimited(rows, ",").encode("latin-1"),
    "tabs_in_utf_16.tsv": lambda rows: delimited(rows, "\t").encode("utf-16"),
    "lines.jsonl": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "array.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "rows.parquet": as_bytes_of_parquet,
    "latin_1.csv.gz": lambda rows: gzip.compress(delimited(rows, ",").encode("latin-1")),
    "lines.jsonl.zst": lambda rows: zst("\n".join(map(json.dumps, rows)).encode()),
}


@pytest.mark.parametrize("name", SAME)
def test_a_list_of_urls_is_read_as_the_table_of_a_folder_of_pictures(tmp_path: Path, name: str) -> None:
    rows = with_images(tmp_path)
    (tmp_path / name).write_bytes(SAME[name](rows))
    table = run(tmp_path, tmp_path / name, shuffle=False)
    pictures = open_images(Reading(tmp_path / name))
    captions = [row["caption"] for row in rows[:3]]
    assert table["caption"].to_pylist() == captions == [caption for item in pictures.items for caption in item.captions]
    assert [Path(url).name for url in table["url"].to_pylist()] == [item.name for item in pictures.items]
    assert funnel(tmp_path)["dropped"] == {"no_caption": 1}
