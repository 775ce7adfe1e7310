"""Damaged sets in every layout, drawn from a seed, with what a reader must make of each file, line and key."""

import bz2
import csv
import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.sets.damage import PICTURE, Damaged, Draw, encoded, put, stray


def text_beside(root: Path, draw: Draw) -> Damaged:
    found = Damaged(root)
    for kind in draw.of("no_caption", "empty", "no_image", "not_text", "missing_file", "format"):
        name, ending, captions = draw.name(), draw.ending(), draw.captions()
        text = root / f"{name}{draw.rng.choice(['', ending])}{draw.rng.choice(['.txt', '.caption', '.text'])}"
        lines = draw.rng.choice(["\n", "\r\n"]).join(captions) + draw.rng.choice(["", "\n", "\n\n"])
        if kind == "good":
            put(root / f"{name}{ending}")
            put(text, encoded(lines, draw.rng))
            found.images[f"{name}{ending}"] = captions
            continue
        if kind != "no_image":
            put(root / f"{name}{'.jxl' if kind == 'format' else ending}")
        if kind in ("no_image", "format", "missing_file"):
            put(root / f"{name}.txt", lines.encode())
        if kind == "missing_file":
            (root / f"{name}{ending}").unlink()
            (root / f"{name}{ending}").symlink_to(root / "nowhere")
        if kind == "not_text":
            put(root / f"{name}.txt", draw.rng.choice([b"\xff\x00\x01\x02", "é".encode() + b"\xe9", bytes(range(256))]))
        if kind == "empty":
            put(root / f"{name}.txt", b" \n")
        found.reasons["no_caption" if kind == "empty" else kind] += 1
    stray(draw, found)
    return found


def listed(root: Path, draw: Draw, *kinds: str) -> tuple[Damaged, list[tuple[str, str, list[str]]]]:
    """Put pictures on disk; return (kind, name, captions) of what the list is to say."""
    found, rows = Damaged(root), []
    for kind in draw.of("no_caption", "missing_file", "outside", "no_file", *kinds):
        name, captions = draw.name() + draw.ending(), draw.captions()
        if kind in ("good", "no_caption"):
            put(root / name)
        if kind == "good":
            found.images[name] = captions
        else:
            found.reasons[kind if kind not in BROKEN else "broken_line"] += 1
        if kind == "outside":
            name = f"../{name}"
        rows.append((kind, "" if kind == "no_file" else name, [] if kind == "no_caption" else captions))
    return found, rows


def in_folder(draw: Draw, found: Damaged, table: Path) -> Damaged:
    """Return the list alone, or its folder, in which further files count."""
    if draw.rng.random() < 0.5:
        for _ in range(draw.rng.randint(0, 2)):
            put(found.place / (draw.name() + draw.ending()))
            found.reasons["no_caption"] += 1
        stray(draw, found)
    else:
        found.place = table
    return found


BROKEN = ("many_cells", "few_cells", "open_quote", "bytes", "no_json", "no_object")


def table(root: Path, draw: Draw) -> Damaged:
    delimiter = draw.rng.choice(",;\t|")
    wide = draw.rng.random() < 0.2
    kinds = ["many_cells", "few_cells"]
    kinds += [] if delimiter == "\t" else ["open_quote"]
    kinds += [] if wide else ["bytes"]
    found, rows = listed(root, draw, *kinds)

    def line(*cells: str) -> bytes:
        out = io.StringIO()
        quoting = draw.rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        if delimiter == "\t":  # which is never quoted
            out.write("\t".join(cells))
        else:
            csv.writer(out, delimiter=delimiter, lineterminator="", quoting=quoting).writerow(cells)
        return out.getvalue().encode("utf-8" if wide else draw.rng.choice(["utf-8", _narrow(out.getvalue())]))

    names = draw.rng.choice([("image_path", "sentence"), ("file_name", "text"), ("image", "caption")])
    lines = [line(*names)]
    for kind, name, captions in rows:
        if kind == "many_cells":
            lines.append(line(name, "one", "two"))
        elif kind == "few_cells":
            lines.append(line(name))
        elif kind == "open_quote":
            lines.append(f'x{delimiter}"{captions[0]}'.encode())
        elif kind == "bytes":
            lines.append(b"\x89\xff\x00\x01" + delimiter.encode() + b"\xe9\x02")
        else:
            lines += [line(name, caption) for caption in captions or [""]]
            if kind in ("outside", "no_file"):  # no image that several lines could share
                found.reasons[kind] += len(captions) - 1
    rest = lines[1:]
    draw.rng.shuffle(rest)
    content = draw.rng.choice([b"\n", b"\r\n"]).join([lines[0], *rest]) + draw.rng.choice([b"", b"\n"])
    if wide:
        content = content.decode().encode("utf-16")
    elif draw.rng.random() < 0.3:
        content = b"\xef\xbb\xbf" + content
    found.ordered = False
    suffix = ".tsv" if delimiter == "\t" else ".csv"
    pack, packed = draw.rng.choice(
        [("", bytes), ("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".zst", _zst)]
    )
    place = root / f"captions{suffix}{pack}"
    put(place, packed(content))
    return in_folder(draw, found, place)


def _narrow(text: str) -> str:
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return "utf-8"
    return "cp1252"


def _zst(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return bytes(out.getvalue().to_pybytes())


def json_lines(root: Path, draw: Draw) -> Damaged:
    found, rows = listed(root, draw, "no_json", "no_object", "bytes")
    lines = []
    for kind, name, captions in rows:
        good = json.dumps({"image": name, "captions": captions}, ensure_ascii=draw.rng.random() < 0.5).encode()
        lines.append({"no_json": good[:-3], "no_object": b'["a"]', "bytes": b"\xff\x00\xe9"}.get(kind, good))
    put(root / "metadata.jsonl", b"\n".join(lines))
    return in_folder(draw, found, root / "metadata.jsonl")


def json_list(root: Path, draw: Draw) -> Damaged:
    found, rows = listed(root, draw, "no_object")
    content = [
        draw.rng.choice([3, "x", None, []]) if kind == "no_object" else {"filename": name, "caption": captions}
        for kind, name, captions in rows
    ]
    put(root / "annotations.json", json.dumps(content).encode())
    return in_folder(draw, found, root / "annotations.json")


def parquet_table(root: Path, draw: Draw) -> Damaged:
    found, rows = listed(root, draw)
    root.mkdir(parents=True, exist_ok=True)
    columns = {"path": [name or None for _, name, _ in rows], "texts": [captions for _, _, captions in rows]}
    schema = pa.schema([("path", pa.string()), ("texts", pa.list_(pa.string()))])
    pq.write_table(pa.table(columns, schema), root / "list.parquet")
    return in_folder(draw, found, root / "list.parquet")


def coco(root: Path, draw: Draw) -> Damaged:
    found, rows = listed(root, draw, "no_object")
    images: list[Any] = []
    annotations: list[Any] = []
    for number, (kind, name, captions) in enumerate(rows):
        images.append({"id": number} if kind == "no_object" else {"id": number, "file_name": name})
        if kind != "no_object":
            annotations += [{"image_id": number, "caption": caption} for caption in captions]
    for _ in range(draw.rng.randint(0, 3)):
        lost = draw.rng.choice(["no_image", "broken_line"])
        annotations.append({"image_id": 10**6, "caption": "x"} if lost == "no_image" else {"caption": "x"})
        found.reasons[lost] += 1
    put(root / "captions_val.json", json.dumps({"images": images, "annotations": annotations}).encode())
    return in_folder(draw, found, root / "captions_val.json")


def karpathy(root: Path, draw: Draw) -> Damaged:
    found, rows = listed(root, draw, "no_object")
    images: list[Any] = []
    for number, (kind, name, captions) in enumerate(rows):
        split = draw.rng.choice(["train", "restval"]) if number else "train"
        sentences = [{"raw": caption} for caption in captions]
        entry = {"filename": name, "split": split, "imgid": number, "sentences": sentences}
        if kind == "no_object":
            del entry[draw.rng.choice(["filename", "split", "sentences"])]
        images.append(entry)
    for _ in range(draw.rng.randint(0, 3)):
        images.append({"filename": draw.name(), "split": "test", "imgid": 0, "sentences": [{"raw": "x"}]})
        found.reasons["not_wanted"] += 1
    put(root / "dataset.json", json.dumps({"images": images}).encode())
    return in_folder(draw, found, root / "dataset.json")


def tars(root: Path, draw: Draw) -> Damaged:
    found = Damaged(root)
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(draw.rng.randint(1, 2)):
        members: list[tuple[str, bytes]] = []
        for kind in draw.of("no_caption", "no_image", "format", "second_image", "other_file", "not_text"):
            draw.number += 1
            key, captions = f"{draw.number:04d}", draw.captions()
            own = [(f"{key}.png", PICTURE)]
            if draw.rng.random() < 0.5:
                texts = [(f"{key}.json", json.dumps({"captions": captions}).encode())]
            else:
                texts = [(f"{key}.txt", encoded("\n".join(captions), draw.rng))]
            if kind in ("good", "second_image"):
                found.images[f"{shard}.tar/{key}.png"] = captions
            if kind == "second_image":
                own += [(f"{key}.jpg", PICTURE)]
            if kind == "no_image":
                own = []
            if kind == "format":
                own = [(f"{key}.jxl", b"\0")]
            if kind == "no_caption":
                texts = []
            if kind == "not_text":
                texts = [(f"{key}.txt", b"\xff\x00\x01\x02")]
            members += [(key, b"no suffix")] if kind == "other_file" else own + texts
            found.reasons += Counter([kind] if kind != "good" else [])
        with tarfile.open(
            root / f"{shard}.tar", "w", format=draw.rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
        ) as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    for reason, content in draw.rng.sample(
        [("tar_empty", b""), ("tar_corrupt", b"not a tar" * 200)], k=draw.rng.randint(0, 2)
    ):
        put(root / f"{reason}.tar", content)
        found.reasons[reason] += 1
    stray(draw, found)
    return found


def _rows(draw: Draw, found: Damaged, file: str) -> dict[str, list[Any]]:
    captions = [draw.captions() if kind == "good" else None for kind in draw.of("no_caption")]
    for number, own in enumerate(captions):
        if own is None:
            found.reasons["no_caption"] += 1
        else:
            found.images[f"{file}#{number}"] = own
    return {"image": [{"bytes": PICTURE, "path": None}] * len(captions), "caption": captions}


SCHEMA = pa.schema(
    [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("caption", pa.list_(pa.string()))]
)


def parquet(root: Path, draw: Draw) -> Damaged:
    found = Damaged(root)
    (root / "data").mkdir(parents=True)
    name = "data/train-00000-of-00002.parquet"
    pq.write_table(pa.table(_rows(draw, found, name), SCHEMA), root / name, row_group_size=3)
    if draw.rng.random() < 0.5:
        pq.write_table(pa.table(_rows(draw, Damaged(root), ""), SCHEMA), root / "data/test-00000-of-00001.parquet")
        found.reasons["not_wanted"] += 1
    if draw.rng.random() < 0.5:
        content = (root / name).read_bytes()
        put(root / "data/train-00001-of-00002.parquet", content[: draw.rng.randrange(len(content))])
        found.reasons["unreadable"] += 1
    stray(draw, found)
    return found


def arrow(root: Path, draw: Draw) -> Damaged:
    found = Damaged(root)
    root.mkdir(parents=True)
    for name in ("dataset_info.json", "state.json"):
        (root / name).write_text("{}")
    name = "data-00000-of-00002.arrow"
    table = pa.table(_rows(draw, found, name), SCHEMA)
    with pa.ipc.new_stream(str(root / name), SCHEMA) as writer:
        writer.write_table(table)
    if draw.rng.random() < 0.5:
        put(root / "data-00001-of-00002.arrow", b"cut off"[: draw.rng.randint(1, 7)])
        found.reasons["unreadable"] += 1
    stray(draw, found)
    return found


LAYOUTS: dict[str, Callable[[Path, Draw], Damaged]] = {
    "text_beside": text_beside,
    "table": table,
    "json_lines": json_lines,
    "json_list": json_list,
    "parquet_table": parquet_table,
    "coco": coco,
    "karpathy": karpathy,
    "tars": tars,
    "parquet": parquet,
    "arrow": arrow,
}
