"""Back-translate captions: write candidate captions into a side-car per shard.

    python -m filip.data.translate source=cc12m shards=SHARDS out=CAPTIONS funnel=translate.json

Each distinct caption is translated once, in blocks of similar length that several processes share, into a cache
keyed by engine, model and text. A guard then judges every candidate, and the accepted ones are joined back to the
shards. A killed run continues from its last block.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import file_state, locked
from filip.data.captions.judging import PLAIN, judge
from filip.data.captions.translation_cache import TranslationCache
from filip.data.cards import BackTranslationSettings, SourceCard, load_source
from filip.data.engines import load_engine
from filip.data.funnel import Fragment
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import reading, runs
from filip.data.sidecar import group_id, write_sidecar
from filip.data.stage import PART, parse_part, tell, work_folder

SAMPLES = 10  # candidates shown per reason
# Two images are one group already if these are equal: the card's group, or the words of the first caption.
CONTENT = f"coalesce('=' || group_value, nullif({PLAIN.format('caption')}, ''), caption)"
# A picture with more captions than this is "no longer available", or a logo: it only groups exact copies.
MOST_CAPTIONS = 10


@dataclass
class TranslateConfig:
    source: str = option(MISSING, "source card (name or path); its back_translation names engine and pivots")
    shards: str = option(MISSING, "folder that filip.data.download filled")
    out: str = option(MISSING, "folder of the side-cars to write", writes="folder")
    funnel: str | None = option(None, "funnel fragment to write, JSON (unit: candidates)", writes="file")
    cache: str | None = option(None, "folder of the translations; default: OUT/_cache", writes="folder")
    part: str | None = option(None, PART)
    processes: int = option(2, "translating processes", at_least=1)
    threads: int = option(2, "DuckDB threads", at_least=1)
    memory: str = option("1GB", "DuckDB memory; the rest spills to disk next to `out`")


def main(config: TranslateConfig) -> None:
    """Make candidate captions by back-translation, one side-car per shard."""
    fragment = translate(config, load_source(config.source))
    if fragment is None:
        return

    def example(reason: str) -> str:
        shown = fragment.notes["samples"][reason][0]
        return f"{shown['caption'][:40]!r} → {shown['back'][:40]!r}"

    tell(fragment, config.funnel, f"{config.out}: {fragment.n_out:,} of {fragment.n_in:,} candidates kept", example)


def translate(config: TranslateConfig, card: SourceCard) -> Fragment | None:
    """Write a side-car for every shard and account for the candidates; with ``part``, only fill the cache.

    Raises UserError when shards are missing, the engine is unavailable, or another run is writing to ``out``.
    """
    settings, part = card.back_translation or BackTranslationSettings("none", []), parse_part(config.part)
    caches = open_caches(config, settings)
    files = shard_files(Path(config.shards).resolve())  # a mistyped folder is reported before anything is made
    out = Path(config.out).resolve()
    identity = [[path.name, *file_state(path)] for path in files] + [[settings.share, settings.min_words]]  # type: ignore[misc]
    with work_folder(out, part, identity, config.threads, config.memory) as (work, con):
        with locked(work / "plan.lock"):
            rows = _rows(files, card)
            captions = work / "captions.parquet"
            if not captions.exists():
                duckdb_io.write_parquet(
                    con,
                    f"""SELECT DISTINCT caption FROM {rows} WHERE trim(caption) <> ''
                        AND len(string_split_regex(trim(caption), '\\s+')) >= {settings.min_words} AND
                        CAST(concat('0x', left(md5(caption), 8)) AS BIGINT) < {round(settings.share * 2**32)}""",
                    captions,
                    "translate: distinct captions",
                )
            plans = [cache.plan(con, captions, work) for cache in caches]
        for cache, plan in zip(caches, plans, strict=True):
            cache.fill(plan, config.processes, part)
        if part is not None:
            return None
        judged = judge(con, caches, captions, work, config.processes)
        with duckdb_io.plain_errors(con, "translate: side-cars"):
            origins = ["original", *(f"{settings.engine}:{pivot}" for pivot in settings.pivots)]
            _write_sidecars(con, out, [path.stem for path in files], origins, card.name, rows, judged)
            counts, samples = _counts_and_samples(con, settings.pivots, judged)
        notes = {
            "engine": settings.engine,
            "pivots": [cache.pivot for cache in caches],
            "distinct_captions": pq.read_metadata(captions).num_rows,
            "share": settings.share,
            "shards": len(files),
            "samples": samples,
        }
    n_in = sum(counts.values())
    accepted = counts.pop(None, 0)
    dropped = {reason: count for reason, count in counts.items() if reason is not None}
    return Fragment("translate", card.name, n_in, accepted, dropped, "candidates", notes)


def open_caches(config: TranslateConfig, settings: BackTranslationSettings) -> list[TranslationCache]:
    """Open a cache per pivot. Each engine is loaded here, too, so that a missing package is an error at once."""
    engine, weights = settings.engine, settings.models
    pivots = [] if engine == "none" else settings.pivots
    models = {pivot: load_engine(engine, pivot, weights).model for pivot in pivots}
    folder = Path(config.cache or Path(config.out) / "_cache").resolve()
    return [TranslationCache(folder, engine, pivot, weights, model) for pivot, model in models.items()]


def shard_files(folder: Path) -> list[Path]:
    """Return the shards' Parquet files, in order. Raises UserError when there are none."""
    files = sorted(path for path in folder.glob("*.parquet") if path.stem.isdigit())
    if not files:
        raise UserError(f"no NNNNN.parquet in {folder}: give the folder that `filip data download` filled")
    return files


def _rows(files: list[Path], card: SourceCard) -> str:
    """Return SQL of all images' captions, in order: shard, key, nth (from 1), caption, group_value and image hash.

    group_value and image are text or NULL.
    """
    # images of filip.data.ingest may have several captions, images of a list of URLs have one
    column, captions = ("captions", "captions") if card.images else ("caption", "[coalesce(caption, '')]")
    group = card.group_column
    with reading(files[0]):
        names = pq.read_schema(files[0]).names
    if column not in names:
        made_by = "ingest" if card.images else "download"
        raise UserError(
            f"{files[0]} has no column '{column}', only {', '.join(names)}: give the folder that `filip data "
            f"{made_by}` filled from the source '{card.name}'"
        )
    if group and group not in names:
        raise UserError(
            f"the card's group_column is '{group}', but {files[0]} has only {', '.join(names)}: add it to "
            "extra_columns and prepare the list again"
        )
    value = duckdb_io.sql_identifier(group) if group else "NULL"
    content = "sha256" if "sha256" in names else "NULL"  # hash of the bytes as they were found
    images = (
        f"(SELECT {duckdb_io.FILE_STEM} AS shard, key, {captions} AS captions, CAST({value} AS VARCHAR) "
        f"AS group_value, CAST({content} AS VARCHAR) AS image "
        f"FROM {duckdb_io.parquet(files, duckdb_io.WITH_FILE)} WHERE status = 'success')"
    )
    return (
        "(SELECT shard, key, group_value, image, unnest(captions) AS caption, "
        f"generate_subscripts(captions, 1) AS nth FROM {images})"
    )


def _write_sidecars(
    con: duckdb.DuckDBPyConnection,
    out: Path,
    shards: list[str],
    origins: list[str],
    source: str,
    rows: str,
    judged: str,
) -> None:
    """Write the side-car of each shard. origins: of a caption, and of its translation by each pivot."""
    _find_same_images(con, rows)
    # one row per translation: lists of them, gathered by DuckDB, would be all in memory at once
    query = f"""
        SELECT r.shard, r.key, r.nth, r.caption, r.group_value, coalesce(c.root, m.root) AS root,
            a.pivot_index, a.back
        FROM {rows} r LEFT JOIN crowds c ON r.image = c.image AND r.nth = 1
            LEFT JOIN merged m ON m.content = {CONTENT} AND r.nth = 1
            LEFT JOIN (SELECT caption, pivot_index, back FROM {judged} WHERE reason IS NULL) a USING (caption)
        ORDER BY r.shard, r.key, r.nth, a.pivot_index"""
    empty = set(shards)
    for path in out.glob("*.parquet"):
        if path.stem not in empty:
            path.unlink()  # its shard no longer exists
    images = runs(con.sql(query).to_arrow_reader(duckdb_io.ROWS_PER_GROUP), "shard", "key")
    for shard, of_shard in groupby(images, lambda image: image[0]["shard"]):
        write_sidecar(out / f"{shard}.parquet", [_sidecar_row(image, origins, source) for image in of_shard])
        empty.discard(shard)
    for shard in empty:  # shards without one image
        write_sidecar(out / f"{shard}.parquet", [])


def _sidecar_row(rows: list[dict[str, Any]], origins: list[str], source: str) -> dict[str, Any]:
    """Return an image's row: its captions, and then the accepted translations of each.

    rows: the captions in order (``nth``), each once or once per accepted translation (``back``, by pivot
    ``pivot_index``; None where there is none). origins: where the captions come from, then of the pivots.
    """
    first = rows[0]
    captions = list({row["nth"]: row["caption"] for row in rows}.values())
    translated = [row for row in rows if row["back"] is not None]
    root = first["root"]
    if root is None:
        group = group_id(first["caption"], source, first["group_value"])
    elif root[0] in "=#":
        group = group_id("", source if root[0] == "=" else "image", root[1:])
    else:
        group = group_id(root)
    return {
        "key": first["key"],
        "captions": [*captions, *(row["back"] for row in translated)],
        "origins": [origins[0]] * len(captions) + [origins[1 + row["pivot_index"]] for row in translated],
        "group": group,
    }


def _find_same_images(con: duckdb.DuckDBPyConnection, rows: str) -> None:
    """Group the captions of a picture that a source has several times: its files are the same, byte for byte.

    Otherwise a batch with two of its copies would take the picture for a negative of itself. Makes two tables of the
    images in ``rows`` (image, nth, caption, group_value).

    merged (content, root): contents that share pictures, directly or through others, and one that represents
    all of them. crowds (image, root): pictures with too many contents.
    """
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE same AS
            SELECT * FROM (
                SELECT DISTINCT image, {CONTENT} AS content FROM {rows} WHERE nth = 1 AND image IS NOT NULL)
            QUALIFY count(*) OVER (PARTITION BY image) > 1"""
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE crowds AS
            SELECT image, '#' || image AS root FROM same GROUP BY image HAVING count(*) > {MOST_CAPTIONS}"""
    )
    con.execute("DELETE FROM same WHERE image IN (SELECT image FROM crowds)")
    con.execute("CREATE OR REPLACE TEMP TABLE merged AS SELECT DISTINCT content, content AS root FROM same")
    while True:
        changed = con.execute(
            """UPDATE merged SET root = least_root FROM (
                SELECT s.content AS found, min(i.root) AS least_root FROM same s JOIN (
                    SELECT image, min(root) AS root FROM same JOIN merged USING (content) GROUP BY image
                ) i USING (image) GROUP BY s.content
            ) WHERE content = found AND least_root < root"""
        ).fetchall()[0][0]
        if not changed:
            return


def _counts_and_samples(
    con: duckdb.DuckDBPyConnection, pivots: list[str], judged: str
) -> tuple[dict[str | None, int], dict[str, list[dict[str, str]]]]:
    """Return how many candidates there are by the reason for which they were dropped, None if accepted; and some."""
    first = "min({'hash': md5(caption), 'pivot': pivot_index, 'caption': caption, 'back': back}"
    found = con.sql(f"SELECT reason, count(*), {first}, {SAMPLES}) FROM {judged} GROUP BY 1 ORDER BY 1").fetchall()
    samples = {
        reason or "accepted": [
            {"caption": one["caption"], "back": one["back"], "pivot": pivots[one["pivot"]]} for one in some
        ]
        for reason, _, some in found
    }
    return {reason: count for reason, count, _ in found}, samples


if __name__ == "__main__":
    run_command(main, TranslateConfig)
