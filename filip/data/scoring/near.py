"""Find images that look like others by their perceptual hashes, without comparing every pair."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from pathlib import Path

import duckdb

from filip.data.lists import duckdb_io

HASH_BITS = 64


def nearest(con: duckdb.DuckDBPyConnection, images: str, others: str, distance: int, path: Path) -> int:
    """Write for each image the nearest of the others that comes before it; return how many have one.

    images: SQL of (shard, key, id, phash). others: SQL of (id, phash); an image may be among them. Ids are texts, and
    only others with a lower id count: of two copies the first stays. Columns written: shard, key, distance (of at most
    ``distance`` bits) and other (its id), by shard and key.

    Two hashes that differ in at most d bits agree in at least t of d + t bands of bits: for each choice of t bands,
    only the images that share all of them are compared. t grows with the number of hashes, so that hardly any that are
    unlike share a choice (for d = 3: 10 choices of 26 bits at 10 million, 20 of 32 bits at 340 million).
    """
    con.execute(f"CREATE OR REPLACE TEMP TABLE asked AS SELECT DISTINCT phash FROM {images}")
    con.execute(f"CREATE OR REPLACE TEMP TABLE seen AS SELECT phash, min(id) AS first FROM {others} GROUP BY phash")
    con.execute(
        "CREATE OR REPLACE TEMP TABLE likes AS SELECT phash, phash AS other, 0 AS distance FROM asked "
        "SEMI JOIN seen USING (phash)"
    )
    counts = con.sql("SELECT (SELECT count(*) FROM asked), (SELECT count(*) FROM seen)").fetchall()[0]
    for masks in band_choices(max(counts), distance) if distance else []:
        con.execute(
            f"""INSERT INTO likes SELECT a.phash, b.phash, bit_count(xor(a.phash, b.phash)) FROM asked a JOIN seen b
                ON a.phash & {masks} = b.phash & {masks} AND a.phash <> b.phash
                WHERE bit_count(xor(a.phash, b.phash)) <= {distance}"""
        )
    return duckdb_io.write_parquet(
        con,
        f"""SELECT shard, key, min(l.distance) AS distance, arg_min(s.first, struct_pack(d := l.distance, f := s.first))
                AS other
            FROM {images} i JOIN likes l USING (phash) JOIN seen s ON s.phash = l.other WHERE s.first < i.id
            GROUP BY shard, key ORDER BY shard, key""",
        path,
        "near-duplicates",
    )


def band_choices(hashes: int, distance: int) -> list[int]:
    """Return bit masks: two hashes that differ in at most ``distance`` bits are equal under one of them."""

    def cost(agreeing: int) -> float:
        bands = distance + agreeing
        shared = HASH_BITS * agreeing / bands  # bits
        return math.comb(bands, agreeing) * (hashes + hashes**2 / 2 ** (shared + 1))

    agreeing = min(range(1, 5), key=cost)
    edges = [HASH_BITS * n // (distance + agreeing) for n in range(distance + agreeing + 1)]
    bands = [((1 << (high - low)) - 1) << low for low, high in pairwise(edges)]
    return [_signed(sum(chosen)) for chosen in combinations(bands, agreeing)]


def _signed(bits: int) -> int:
    return bits - (1 << HASH_BITS) if bits >> (HASH_BITS - 1) else bits
