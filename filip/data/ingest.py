"""Turn images that are already on disk into the same shards, by the same rules, as a list of URLs gives.

    python -m filip.data.ingest source=photos/ out=SHARDS funnel=ingest.json text_funnel=text_rules.json
    python -m filip.data.ingest source=mine out=SHARDS            # a card with `images: FOLDER`

Reads a folder with a table of paths and captions, images with a .txt next to each, webdataset tars, Hugging Face
datasets (on disk or as Parquet), COCO's and Karpathy's JSON: see filip/sets, which counts each file and line that
cannot be used. Each image is one row with all its captions. One bad image stops nothing. A killed run continues from
its last shard, with an identical result.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError, counted
from filip.common.files import digest, file_state, locked, replacing, write_json
from filip.common.progress import say
from filip.common.text_files import NotAFileError
from filip.common.worker_pool import run_blocks
from filip.data.cards import SourceCard, load_source, overridden
from filip.data.fetching.outcomes import FORGOTTEN, MAX_BYTES, Forgotten, hash_of_url, place_of
from filip.data.fetching.shard_maker import SUFFIXES, WORK, ShardMaker, is_complete, shard_name, shard_schema
from filip.data.funnel import Fragment, write_fragment
from filip.data.lists import duckdb_io
from filip.data.lists.columns import cleaned
from filip.data.lists.parquet_rows import row_group, runs
from filip.data.stage import PART, Part, account_for, do_blocks, parse_part, sharing, sweep, tell, work_folder
from filip.data.text_rules import apply_text_rules
from filip.sets.image_set import Account
from filip.sets.layout import RANK, Layout, Reading
from filip.sets.layout import Row as ListedRow
from filip.sets.layouts import LAYOUTS, recognise, rows_of

LOCATORS = ("_file", "_position", "_size", "_part")  # columns of the list that no shard shows
# Errors of one file, not of its disk: the image is counted, and the run continues.
OF_ONE_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
Row = dict[str, Any]
BATCH = 10_000
_TEXTS, _NUMBERS = ("url", "file", "group", "problem"), ("position", "size", "part", "n")
ROW_SCHEMA = pa.schema(
    [("captions", pa.list_(pa.string())), *((n, pa.string()) for n in _TEXTS), *((n, pa.int64()) for n in _NUMBERS)]
)


@dataclass
class IngestConfig:
    source: str = option(MISSING, "source card (name or path), or directly the folder or file with the images")
    images: str | None = option(None, "folder or file with the images; default: the card's")
    out: str = option(MISSING, "folder of the shards: NNNNN.tar, NNNNN.parquet, NNNNN_stats.json", writes="store")
    funnel: str | None = option(None, "funnel fragment to write, JSON (unit: images)", writes="file")
    text_funnel: str | None = option(None, "funnel fragment of the text rules, JSON (unit: captions)", writes="file")
    list: str | None = option(None, "Parquet of all images found; default: OUT/_work/list.parquet", writes="file")
    kept: str | None = option(None, "Parquet of the images that stay; default: OUT/_work/kept.parquet", writes="file")
    layout: str | None = option(None, "default: the card's, else detected", choices=("auto", *LAYOUTS))
    split: str | None = option(None, "e.g. test, train+test, all; default: the card's, else train")
    image_rules: dict[str, Any] = option({}, "overrides, e.g. 'image_rules={min_side:0}' for pictures below 200 px")
    shuffle: bool | None = option(None, "default: yes, but tars and Parquet files keep their order")
    seed: int = option(0, "seed of the shuffle", at_least=0)
    processes: int | None = option(None, "processes that download; default: the card's", at_least=1)
    threads: int = option(2, "DuckDB threads", at_least=1)
    memory: str = option("1GB", "DuckDB memory; the rest spills to disk next to `list`")
    part: str | None = option(None, PART)


def main(config: IngestConfig) -> None:
    """Turn images that are already on disk into shards, with the text and image rules of a card."""
    card = resolve_card(config)
    fragments = ingest(card, config)
    if fragments is None:
        return
    texts, images = fragments
    if config.text_funnel:
        write_fragment(config.text_funnel, texts)
    head = (
        f"{config.out}: {images.n_out:,} of {images.n_in:,} images in {images.notes['shards']} shards, "
        f"{texts.n_out:,} of {texts.n_in:,} captions pass the text rules"
    )
    tell(images, config.funnel, head, lambda reason: images.notes["examples"].get(reason, [""])[0][:90])
    if limits := size_limits(card, images.dropped):
        say(f"  {limits}")


def size_limits(card: SourceCard, dropped: Mapping[str, int]) -> str:
    """Return a sentence on the limits of sizes; "" if no image was dropped for its size."""
    if not {"too_small", "aspect"} & set(dropped):
        return ""
    rules = card.image_rules
    return (
        f"The shorter side must have at least {rules.min_side} px, and the longer one at most {rules.max_aspect:g} "
        "times as many; 'image_rules={min_side:0,max_aspect:20}', in quotes, takes others, too"
    )


def resolve_card(config: IngestConfig) -> SourceCard:
    """Return the card of ``config.source``; a folder or file of images gets a card with the default rules."""
    path = Path(config.source)
    is_card = path.suffix in (".yaml", ".yml") or not path.exists()
    name = path.resolve().name.split(".")[0]
    card = load_source(config.source) if is_card else SourceCard(name, images=config.source)
    if config.images is not None:  # what a download left: its list has been read
        card = replace(card, images=config.images, list=None, where=None)
    if card.images is None:
        raise UserError(
            f"source '{card.name}' ({card.path}) has no `images`: name the folder or file that holds them. A list of "
            "URLs is read by filip.data.prepare"
        )
    card = overridden(card, "image_rules", config.image_rules)
    if config.processes is not None:
        card.download.processes = config.processes
    return replace(card, layout=config.layout or card.layout, split=config.split or card.split)


def ingest(card: SourceCard, config: IngestConfig) -> tuple[Fragment, Fragment] | None:
    """Fill the folder ``config.out`` with the images of a card; return the fragments of the captions and the images.

    A part makes its shards of the images that the first part has listed, and returns None.

    Raises UserError when no image is found, when the folder holds something else, when another process is filling
    it, or when a disk fails.
    """
    part, reading = parse_part(config.part), reading_of(card, config.out)
    layout, files, reading = recognise(reading)
    if splits := reading.about_splits():
        say(f"{card.images}: {splits}")
    folder = Path(config.out).resolve()
    work = folder / WORK
    listed = Path(config.list) if config.list else work / "list.parquet"
    kept_list = Path(config.kept) if config.kept else work / "kept.parquet"
    shuffle = config.shuffle if config.shuffle is not None else not LAYOUTS[layout].in_order
    with sharing(work, folder, part):
        planned = work / "planned"  # for which parts
        with locked(work / "plan.lock"):
            mark, mine = work / "ingest.json", {"source": card.name}  # changes within it are found shard by shard
            if not mark.exists() and any(folder.glob("*.tar")):
                raise UserError(f"{folder} has shards that were not made by ingest: give another out=FOLDER")
            if mark.exists() and json.loads(mark.read_text(encoding="utf-8")) != mine:
                raise UserError(f"{folder} was filled from another source than '{card.name}': give another out=FOLDER")
            write_json(mark, mine)
            forgotten = file_state(Forgotten.load(folder).path)
            state = part and digest([_state(layout, reading), asdict(card), shuffle, config.seed, forgotten])
            if not (state and planned.exists() and planned.read_text() == state):
                planned.unlink(missing_ok=True)
                _list_images(card, reading, layout, files, listed, work, config)
                texts = _apply_rules(card, LAYOUTS[layout], listed, kept_list, shuffle, config)
                if state:
                    planned.write_text(state)
        shards = _store(card, layout, kept_list, folder, part)
        return None if part is not None else (texts, _account(card, layout, listed, folder, shards))


def reading_of(card: SourceCard, out: str | None = None) -> Reading:
    """Return how to read the images of a card, without those in ``out``. Raises UserError if there are none."""
    images = Path(card.images or "")
    if not images.exists():
        raise UserError(
            f"source '{card.name}': no images at {images}. {' '.join(card.obtain.split()) or 'Set `images`'}"
        )
    same = ("layout", "image_column", "image_root", "caption_column", "caption_columns", "group_column", "only")
    settings = {name: getattr(card, name) for name in (*same, "header", "columns", "split", "encoding")}
    without = None if out is None else os.path.abspath(out)
    return Reading(images, without=without, inside_only=not card.follow_links, **settings)


def state_of_images(card: SourceCard, out: str) -> str:
    """Return a hash of the names, sizes and times of all files of a card's images; "" if they cannot be read.

    out: folder of the shards; its files are left out.
    """
    try:
        reading = reading_of(card, out)
        layout, _, reading = recognise(reading)
        return _state(layout, reading)
    except UserError:
        return ""  # the command names the fault


def _state(layout: str, reading: Reading) -> str:
    return digest({file: file_state(file) for file in LAYOUTS[layout].files(reading)})


def _list_images(
    card: SourceCard, reading: Reading, layout: str, parts: list[Path], listed: Path, work: Path, config: IngestConfig
) -> None:
    """Write list.parquet: one row per image, with all its captions. Files are not listed a second time."""
    folder, forgotten = work / "found", Forgotten.load(work.parent)
    folder.mkdir(exist_ok=True)
    files, todo = [], []
    for number, part in enumerate([*parts, None]):
        state: list[Any] = ["" if part is None else str(part.resolve()), layout, reading.settings()]
        state += [] if part is None else [part.stat().st_size, part.stat().st_mtime_ns]
        state += [sorted(forgotten.urls), sorted(forgotten.files)] if forgotten.path.exists() else []
        files.append(folder / f"{number:05d}-{digest(state)[:12]}.parquet")
        # a folder's mtime does not change when a subfolder does
        if part is None or part.is_dir() or not files[-1].exists():
            todo.append((layout, part, number, reading, files[-1], forgotten))
    for path in folder.glob("*.parquet"):
        if path not in files:
            path.unlink()
    processes = min(card.download.processes, len(todo) - 1)  # one lists the files that belong to no part
    run_blocks(find_part, todo, processes, what="ingest: listing", unit="files", total=len(todo))
    group = ""
    if card.group_column:
        group = f'"group" AS {duckdb_io.sql_identifier(card.group_column)},'
    # the first row of the lowest rank counts for an image, and its place is the image's
    query = f"""SELECT url, captions, {group} problem AS _problem, file AS _file, position AS _position,
            size AS _size, first_value(part) OVER image AS _part, first_value(n) OVER image AS _n
        FROM (SELECT *, {RANK} AS rank FROM {duckdb_io.parquet(files)})
        WINDOW image AS (PARTITION BY file, position ORDER BY rank, part, n)
        ORDER BY _part, _n, rank, part, n"""
    with work_folder(listed, threads=config.threads, memory=config.memory) as (_, con):
        rows = duckdb_io.write_parquet(con, query, listed, "ingest: images", through=_images_of)
    if not rows:
        raise UserError(f"there is not one image in {card.images}")


def _apply_rules(
    card: SourceCard, layout: Layout, listed: Path, kept_list: Path, shuffle: bool, config: IngestConfig
) -> Fragment:
    """Write kept.parquet, the images that have a caption left, a row group per shard; return the captions' fragment."""
    with work_folder(kept_list, threads=config.threads, memory=config.memory) as (scratch, con):
        numbered = f"(SELECT *, row_number() OVER () - 1 AS _image FROM {duckdb_io.parquet(listed)})"
        captions, passed = scratch / "captions.parquet", scratch / "passed.parquet"
        count = duckdb_io.write_parquet(
            con,
            f"""SELECT url, {cleaned("caption", card)} AS caption, _image, _nth FROM (
                    SELECT url, unnest(captions) AS caption, generate_subscripts(captions, 1) AS _nth, _image
                    FROM {numbered} WHERE _problem IS NULL
                ) ORDER BY _image, _nth""",
            captions,
            "ingest: captions",
        )
        if not count:
            first = con.sql(f"SELECT _problem FROM {duckdb_io.parquet(listed)} WHERE _problem LIKE '%: %' LIMIT 1")
            example = "".join(f"; the first is {problem}" for (problem,) in first.fetchall())
            reason = "coalesce(split_part(_problem, ':', 1), 'no_caption')"
            counts = con.sql(f"SELECT {reason}, count(*) FROM {duckdb_io.parquet(listed)} GROUP BY 1 ORDER BY 1")
            found = counted(dict(counts.fetchall()))
            raise UserError(f"not one image of {card.images} has a caption: {found}{example}")
        rules = card.text_rules
        if rules.max_repeats is None:  # your own captions may be names of classes
            rules = replace(rules, max_repeats=0)
        judged, processes = replace(card, text_rules=rules), card.download.processes
        fragment = apply_text_rules(captions, passed, judged, None, processes, config.threads, config.memory)
        assert fragment is not None
        order = f"md5(_image || ',{config.seed}'), _image" if shuffle else "_image"
        shard = (
            "dense_rank() OVER (ORDER BY _part) - 1"
            if layout.shard_per_file
            else f"(dense_rank() OVER (ORDER BY {order}) - 1) // {card.download.samples_per_shard}"
        )
        # a row per caption; forgotten images keep their places, so that the other shards stay as they are
        query = f"""SELECT l.url, '' AS caption, p.caption AS captions,
                l.* EXCLUDE (url, captions, _problem, _n), {shard} AS _shard
            FROM {numbered} l JOIN (SELECT _image, caption, _nth FROM {duckdb_io.parquet(passed)} UNION ALL
                SELECT _image, '', 1 FROM {numbered} WHERE url = '{FORGOTTEN}') p USING (_image)
            ORDER BY _shard, {order}, p._nth"""
        with duckdb_io.plain_errors(con, "ingest: shards"), replacing(kept_list) as part:
            rows = con.sql(query).to_arrow_reader(BATCH)
            schema = pa.schema([field for field in _with_lists(rows.schema) if field.name not in ("_shard", "_image")])
            with pq.ParquetWriter(part, schema, compression="zstd") as writer:
                for _, images in groupby(runs(rows, "_shard", "_image"), lambda run: run[0]["_shard"]):
                    texts = (([row["captions"] for row in run], run[0]) for run in images)
                    table = pa.Table.from_pylist([{**row, "caption": t[0], "captions": t} for t, row in texts], schema)
                    writer.write_table(table, max(1, len(table)))  # a row group per shard
    return replace(fragment, unit="captions")


def _with_lists(schema: pa.Schema) -> pa.Schema:
    return schema.set(schema.get_field_index("captions"), pa.field("captions", pa.list_(pa.string())))


def _images_of(sorted_rows: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Yield an empty table, and then a row for each image: its first, with the distinct captions of them all."""
    schema = _with_lists(sorted_rows.schema)
    yield schema.empty_table()
    images_rows = runs(sorted_rows, "_part", "_n")
    while some := list(islice(images_rows, BATCH)):
        captions = [list(dict.fromkeys(text for row in run for text in row["captions"])) for run in some]
        images = [{**run[0], "captions": texts} for run, texts in zip(some, captions, strict=True)]
        yield pa.Table.from_pylist(images, schema)


def _store(card: SourceCard, layout: str, kept_list: Path, folder: Path, part: Part) -> range:
    """Make a part's shards that are missing, or differ from the present rows and settings; remove surplus ones."""
    sweep(folder / WORK, part)
    shown: Any = {"is_done": partial(is_current, folder, kept_list, card), "what": "ingest", "unit": "images"}
    files = do_blocks(store_shard, kept_list, f"{folder}/", part, card.download.processes, card, layout, **shown)
    shards = range(len(files))
    for path in folder.iterdir():  # of an earlier run that had more
        number = re.match("[0-9]+", path.name)
        if number and path.name[number.end() :] in SUFFIXES and int(number[0]) not in shards:
            path.unlink(missing_ok=True)
    return shards


def _account(card: SourceCard, layout: str, listed: Path, folder: Path, shards: range) -> Fragment:
    """Return the funnel of the images: each in the list is in exactly one bucket."""
    account = Account()
    table = pq.ParquetFile(listed)
    total, without = table.metadata.num_rows, 0
    for batch in table.iter_batches(50_000, columns=["url", "captions", "_problem"]):
        for row in batch.to_pylist():
            if row["_problem"] is not None and row["url"] != FORGOTTEN:
                account.add(row["url"], row["_problem"])
            elif not row["captions"] and row["url"] != FORGOTTEN:
                account.add(row["url"], "no_caption")
            else:
                without += 1
    before = account.counts.total()
    images = account_for(folder, shards, account)
    dropped = account.counts
    seen = images + dropped.total() - before
    if without > seen:
        dropped["text_rules"] = without - seen  # images of which no caption is left
    if not images:
        examples = (account.examples.get(reason, [""])[0] for reason, _ in dropped.most_common())
        shown = next(filter(None, examples), "")
        sentence = f"not one of {total:,} images can be used: {counted(dropped)}, e.g. {shown[:120]}"
        raise UserError(f"{sentence}. {size_limits(card, dropped)}".removesuffix(". "))
    notes = {"shards": len(shards), "layout": layout, "examples": account.examples}
    return Fragment("ingest", card.name, total, images, dict(dropped), "images", notes)


# ---- the rows of the set, and the shards that are made of them -------------------------------------------


def is_current(folder: Path, kept: Path, card: SourceCard, shard: int) -> bool:
    """Return whether a complete shard is there that was made from exactly these rows with these settings."""
    try:
        stats = json.loads((folder / f"{shard:05d}_stats.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    complete = is_complete(folder, shard) and (folder / f"{shard:05d}.index").exists()
    # rows, settings, and the files themselves: a missing one may be in its place by now
    return complete and bool(stats.get("made_from") == _identity(row_group(kept, shard).to_pylist(), card))


def _identity(rows: list[Row], card: SourceCard) -> str:
    load = card.download
    pictures = (load.image_size, load.resize_mode, load.only_if_bigger, load.encode_format, load.quality)
    files = {row["_file"]: file_state(row["_file"]) for row in rows}
    whole = ["full_decoding"] if load.full_decoding else []
    return digest([rows, files, asdict(card.image_rules), pictures, *whole])


def store_shard(kept: Path, shard: int, file: Path, card: SourceCard, layout: str) -> int:
    """Make a shard, by its Parquet file, from a row group of ``kept``; return its number of rows. Runs in a worker."""
    table = row_group(kept, shard)
    rows: list[Row] = table.to_pylist()
    # before the files are read: one that changes meanwhile is read again next time
    made_from = _identity(rows, card)
    maker = ShardMaker(card=card, final_folder=file.parent)
    schema = shard_schema(pa.schema([field for field in table.schema if field.name not in LOCATORS]))
    with maker.staged(shard) as (staging, progress):
        images = ((number, *_read(row, layout)) for number, row in enumerate(rows))
        shown = [{name: value for name, value in row.items() if name not in LOCATORS} for row in rows]
        stats = maker.fill(shard, staging, progress, shown, schema, images)
        write_json(staging / f"{shard_name(shard)}_stats.json", stats | {"made_from": made_from})
    return len(rows)


def _read(row: Row, layout: str) -> tuple[bytes | None, str]:
    """Return the bytes of an image, or None and the reason. Raises UserError when the disk fails."""
    if row["url"] == FORGOTTEN:
        return None, f"{FORGOTTEN}: on request"
    try:
        size = row["_size"] if row["_size"] >= 0 else os.stat(row["_file"]).st_size
        if not LAYOUTS[layout].in_order and size > MAX_BYTES:
            return None, f"too_many_bytes: {size}"
        data = LAYOUTS[layout].read(row["_file"], row["_position"], row["_size"])
    except NotAFileError as error:
        return None, f"not_a_file: {error.strerror}"
    except OF_ONE_FILE as error:
        return None, f"missing_file: {error.strerror or error}"
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None) is None:  # an error from Arrow: a page that cannot be unpacked
            return None, f"unreadable: {error}"
        raise UserError(
            f"cannot read {row['url']} from {row['_file']}: {error}. What is done is kept: once the "
            "disk is in order, run the same command again"
        ) from error
    return (None, f"too_many_bytes: {len(data)}") if len(data) > MAX_BYTES else (data, "")


def find_part(layout: str, part: Path | None, number: int, reading: Reading, out: Path, forgotten: Forgotten) -> int:
    """List the rows of one part into ``out``; return 1, for the progress. Runs in a worker process."""
    with replacing(out) as path, pq.ParquetWriter(path, ROW_SCHEMA, compression="zstd") as writer:
        rows_found = (_unless_forgotten(row, layout, forgotten) for row in rows_of(layout, part, reading))
        n = 0
        while batch := list(islice(rows_found, BATCH)):
            rows = [
                {**vars(image), "captions": [_valid(c) for c in image.captions], "part": number, "n": n + i}
                for i, image in enumerate(batch)
            ]
            for row in rows:
                row |= {name: _valid(row[name]) for name in ("url", "file", "problem") if row[name] is not None}
            writer.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA))
            n += len(batch)
    return 1


def _unless_forgotten(row: ListedRow, layout: str, forgotten: Forgotten) -> ListedRow:
    """Return the row, or, if its image was forgotten, one that keeps its place among the others and names nothing."""
    data = None
    if forgotten.files and row.problem is None:
        data, _ = _read({"url": row.url, "_file": row.file, "_position": row.position, "_size": row.size}, layout)
    place = place_of(row.file, row.position)
    if not forgotten.refuses(row.url, data) and not forgotten.refuses(place):
        return row
    return ListedRow(FORGOTTEN, [], f"{FORGOTTEN} {hash_of_url(place)}", problem=f"{FORGOTTEN}: on request")


def _valid(text: str) -> str:
    """Return a text without lone surrogates (from JSON or names that are not UTF-8), which no Parquet file can hold."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


if __name__ == "__main__":
    run_command(main, IngestConfig)
