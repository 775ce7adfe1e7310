"""Read lists of pictures: tables, COCO's JSON (``captions_train2017.json``) and Karpathy's splits.

A folder has one list for each split, or one for all.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filip.common.errors import UserError
from filip.common.text_files import decoded, read_file
from filip.sets.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    caption_columns,
    captions_of,
    group_of,
    image_column,
    one_line,
    split_in,
    texts,
    usual_column,
)
from filip.sets.layout import (
    FEW,
    Layout,
    Reading,
    Row,
    files_in,
    inside,
    is_picture,
    last_part,
    pictures_below,
    split_of,
    split_of_folder,
    split_of_picture,
    unused,
    walk,
)
from filip.sets.parquet import image_bytes_column
from filip.sets.tables import JSON_PACKED, SUFFIXES, Broken, Record, Rows, json_in, read_table

SAMPLE = 50  # names of a list by which its pictures are looked for
# if a folder has several lists, the one with such a name counts
USUAL = ("metadata", "captions", "annotations", "labels")

Finder = Callable[[str], tuple[str, str | None]]


def lists_in(reading: Reading, suffixes: Collection[str], fits: Callable[[Path], bool]) -> list[Path]:
    """Return the lists of a folder, or else those in the folders below it."""
    for depth in (1, 2):
        there = files_in(reading, suffixes, depth)
        count = Counter((path.parent, path.suffix) for path in there)
        if lists := [path for path in there if count[path.parent, path.suffix] <= FEW and fits(path)]:
            return lists
    return []


def finder(part: Path, reading: Reading, names: Iterable[str]) -> Finder:
    """Return the function that gives the path of a picture that a list names, and its fault.

    names: some of the list. They are relative to the list's folder, or else to the set's. If none of these pictures is
    there, they are looked for by the last part of their names, wherever in the set they are; of several with one name
    the one in a folder of the list's split is taken, or else none.
    """
    root = reading.root_of(part)
    names = list(names)
    if reading.image_root or not reading.place.is_dir():
        return partial(inside, root)
    for base in (root, os.path.abspath(reading.place)):
        if any(path and os.path.lexists(path) for path, _ in (inside(base, name) for name in names)):
            return partial(inside, base)
    pictures, split = pictures_below(reading), split_of(part, reading)
    places = by_name(path for path in pictures if split and split_of_folder(path, reading.place) == split)
    places = {**by_name(pictures), **places}
    if not any(places.get(last_part(name)) for name in names):
        return partial(inside, root)

    def find(name: str) -> tuple[str, str | None]:
        path = places.get(last_part(name))
        return (path, None) if path else inside(root, name.replace("\\", "/"))

    return find


def split_of_row(column: str | None, path: str, part: Path, reading: Reading) -> str | None:
    """Return the split of a row: its column's, its table's, or its picture's."""
    if split := column or split_of(part, reading):
        return split
    place = os.path.abspath(reading.place) if reading.place.is_dir() else reading.root_of(part)
    return split_of_picture(Path(path), reading, place)


def by_name(pictures: Iterable[Path]) -> dict[str, str | None]:
    """Return the path of each picture by its file's name in lower case; None for several of a name."""
    places: dict[str, str | None] = {}
    for path in pictures:
        name = path.name.lower()
        places[name] = None if name in places else os.path.abspath(path)
    return places


class Listed(Layout):
    """Layout of a list of images, given alone or with its folder, to which the names are relative."""

    def lists(self, reading: Reading) -> list[Path]:
        """Return the lists of this layout in a folder."""
        raise NotImplementedError

    def parts(self, reading: Reading) -> list[Path]:
        if reading.place.is_file():
            return [reading.place] if self.fits(reading.place) else []
        lists = self.lists(reading)
        splits = {split_of(path, reading) for path in lists} - {None}
        # one, or parts of one set: of different splits, or in different folders
        if len(lists) in (1, len(splits), len({path.parent for path in lists})):
            return lists
        usual = [path for path in lists if path.name.split(".")[0].lower() in USUAL]
        if len(usual) != 1:
            raise UserError(
                f"{reading.place} holds several tables ({', '.join(path.name for path in lists[:5])}): name the "
                f"one with the captions, such as {lists[0]}"
            )
        return usual

    def fits(self, path: Path) -> bool:
        """Return whether a file is a list of this layout."""
        raise NotImplementedError

    def files(self, reading: Reading) -> Iterator[str]:
        parts = self.parts(reading)
        yield from map(os.path.abspath, parts)
        yield from (row.file for part in parts for row in self.find(part, reading))
        if reading.place.is_dir():
            yield from (row.file for row in self.rest(reading, parts))

    def rest(self, reading: Reading, parts: Sequence[Path]) -> Iterator[Row]:
        """Yield a row for each file; pictures that the list names are merged with the rows of the list."""
        taken = {os.path.abspath(part) for part in parts}
        for path, problem in walk(reading.place, reading.inside_only, without=reading.without):
            if os.path.abspath(path) in taken:
                continue
            if problem is None and is_picture(path):
                split = split_of_picture(path, reading)
                yield Row(reading.name_of(path), [], os.path.abspath(path), split=split)
            else:
                row = unused(path, reading, problem)
                # the place of a file that the list names
                yield Row(row.url, [], row.file, 0, problem=row.problem)


HEAD = 20_000  # bytes of a text or a JSON by which a table is known
NUMBER = re.compile(r"#\d+$")  # of a caption, behind the name of its image in Flickr8k


class Table(Listed):
    """Layout of a table, in which rows that name the same image are one image with several captions."""

    about = "a folder of images with a table (CSV, TSV, JSON lines, Parquet) of path and caption"

    def lists(self, reading: Reading) -> list[Path]:
        paths = lists_in(reading, [*SUFFIXES, ".json", ".txt"], _is_list)
        return [path for path in paths if path.parent == reading.place or _has_usual_columns(path)]

    def fits(self, path: Path) -> bool:
        return path.name.lower().endswith((*SUFFIXES, ".txt", ".json", *JSON_PACKED)) and not _has_bytes(path)

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        try:
            table = _open(part, reading)
        except UserError:  # find reports it
            return super().splits(part, reading)
        rows = (row[1] for row in table.rows if not isinstance(row, Broken))
        return Counter(
            split_of_row(split_in(record), table.find(file_named(record.get(table.image), reading))[0], part, reading)
            for record in rows
        )

    def columns(self, part: Path, reading: Reading) -> list[str]:
        return _rows(part, reading).names

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        name, table = reading.name_of(part), _open(part, reading)
        empty = dict.fromkeys(table.names)
        for row in table.rows:
            if isinstance(row, Broken):
                place = f"{name}:{row.number}"
                yield Row(place, [], f"{part}#{row.number}", problem=f"{row.reason}: {row.why}")
                continue
            number, record = row
            matches = all(str(record.get(column)) == value for column, value in reading.only.items())
            file = file_named(record.get(table.image), reading)
            path, problem = table.find(file)
            problem = problem if matches else "not_wanted: `only` in the card"
            yield Row(
                file or f"{name}:{number} (a row without {table.image})",
                captions_of(record, table.captions) if problem is None else [],
                path or f"{part}#{number}",  # rows of one file are one image
                group=group_of({**empty, **record}, reading, part) if reading.group_column else None,
                problem=problem,
                split=split_of_row(split_in(record), path, part, reading),
            )


@dataclass
class _Open(Rows):
    """The rows of a table, the columns of its images and captions, and where its images are."""

    image: str
    captions: list[str]
    find: Finder


def _open(part: Path, reading: Reading) -> _Open:
    table = _rows(part, reading)
    start = list(islice(table.rows, SAMPLE))
    records = [row[1] for row in start if not isinstance(row, Broken)]
    image = _image_column(table.names, records, reading, part)
    captions = _caption_columns(table.names, records, image, reading, part)
    find = finder(part, reading, [file_named(record.get(image), reading) for record in records])
    return _Open(table.names, chain(start, table.rows), image, captions, find)


def _rows(part: Path, reading: Reading) -> Rows:
    table = read_table(part, reading.header, reading.columns, encoding=reading.encoding)
    first = next((n for n, name in enumerate(table.names) if _names_a_picture(name)), None)
    if first is None or not reading.header or reading.columns:
        return table
    # Flickr8k.token.txt has no header
    other = "caption" if len(table.names) == 2 else "column{}"
    names = ["image" if n == first else other.format(n) for n in range(len(table.names))]
    return read_table(part, False, names, encoding=reading.encoding)


def _image_column(names: Sequence[str], records: Sequence[Record], reading: Reading, part: Path) -> str:
    """Return the column with the usual name, or the only one that names pictures of the folder of the table."""
    try:
        return image_column(names, reading, part)
    except UserError:
        if reading.image_column:
            raise
        there = by_name(pictures_below(reading if reading.place.is_dir() else replace(reading, place=part.parent)))
        fitting = [
            c for c in names if any(last_part(file_named(record.get(c), reading)) in there for record in records)
        ]
        if len(fitting) != 1:
            raise
        return fitting[0]


def _caption_columns(
    names: Sequence[str], records: Sequence[Record], image: str, reading: Reading, part: Path
) -> list[str]:
    """Return the columns with the usual names, or the only other one with several words in its cells.

    A column of single words, such as a `text` of labels, gives way to the only one of several words that has a usual
    name within its own, such as `long_description`.
    """
    values = {c: {str(r.get(c) or "").strip() for r in records} for c in names if c != image}
    wordy = [c for c, cells in values.items() if any(" " in cell for cell in cells)]
    wordy = [c for c in wordy if len(values[c]) > 1] or wordy  # the same in every row is a photographer
    try:
        columns = caption_columns(names, reading, part)
    except UserError:
        if reading.caption_columns or len(wordy) != 1:
            raise
        return wordy
    longer = [c for c in wordy if {*re.split("[^a-z]+", c.lower())} & {*CAPTION_COLUMNS}]
    named = reading.caption_columns or reading.caption_column in names
    return columns if named or columns[0] in wordy or len(longer) != 1 else longer


def _is_list(path: Path) -> bool:
    """Return whether a file of a folder is a table of images; texts and JSON may be anything else."""
    if path.suffix.lower() not in (".txt", ".json"):
        return not _has_bytes(path)
    if path.stem.lower() in USUAL and path.suffix.lower() == ".json":
        return True
    start = decoded(read_file(path, size=HEAD).rpartition(b"\n")[0]) or ""
    if path.suffix.lower() == ".json":
        named = [any(f'"{name}"' in start for name in usual) for usual in (IMAGE_COLUMNS, CAPTION_COLUMNS)]
        return start.lstrip()[:1] == "[" and all(named)
    cells = [cell.strip().lower() for cell in re.split("[,;\t|]", start.partition("\n")[0])]
    header = any(cell in IMAGE_COLUMNS for cell in cells) and any(cell in CAPTION_COLUMNS for cell in cells)
    return header or (len(cells) == 2 and _names_a_picture(cells[0]))


def _has_usual_columns(path: Path) -> bool:
    """Return whether a table in a folder below is one of images, and not of something else beside them."""
    try:
        names = _rows(path, Reading(path)).names
    except UserError:
        return False
    return None not in (usual_column(names, IMAGE_COLUMNS), usual_column(names, CAPTION_COLUMNS))


def _names_a_picture(cell: str) -> bool:
    return is_picture(Path(NUMBER.sub("", cell)))


def file_named(value: Any, reading: Reading) -> str:
    """Return the path that a cell names, which may be Hugging Face's {path, bytes}; "" if it names none."""
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("file_name")
    name = "" if value is None else str(value).strip()
    if NUMBER.search(name) and _names_a_picture(name):
        name = NUMBER.sub("", name)
    return reading.image_name.replace("{}", name) if name else ""


def _has_bytes(path: Path) -> bool:
    return path.suffix == ".parquet" and image_bytes_column(path) is not None


class _Annotations(Listed):
    def lists(self, reading: Reading) -> list[Path]:
        return lists_in(reading, [".json"], self.fits)

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        return Counter(row.split for row in self.find(part, reading) if row.group is not None)


class Coco(_Annotations):
    """COCO's JSON: ``images`` with file names, ``annotations`` with the captions; an image has all its captions."""

    about = "COCO's JSON of captions and its images"

    def lists(self, reading: Reading) -> list[Path]:
        paths = super().lists(reading)  # COCO's archive has boxes and keypoints beside the captions
        captioned = [path for path in paths if any(_has(one, "caption") for one in _content(path)["annotations"][:100])]
        return captioned or paths

    def fits(self, path: Path) -> bool:
        content = _content(path)
        return all(isinstance(content.get(key), list) for key in ("images", "annotations"))

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        content, name = _content(part), reading.name_of(part)
        listed = [str(image["file_name"]) for image in content["images"][:SAMPLE] if _is_image(image)]
        find = finder(part, reading, listed)
        captions: dict[Any, list[str]] = defaultdict(list)
        unread: list[tuple[int, str]] = []
        images = {image["id"] for image in content["images"] if _is_image(image)}
        for number, entry in enumerate(content["annotations"], 1):
            if not _has(entry, "image_id") or not isinstance(entry["image_id"], int | str):
                unread.append((number, "broken_line: an annotation without image_id"))
            elif entry["image_id"] not in images:
                unread.append((number, f"no_image: an annotation of image {entry['image_id']}, which is not listed"))
            elif "caption" in entry:
                captions[entry["image_id"]] += one_line(texts(entry["caption"]))
        for number, image in enumerate(content["images"], 1):
            if not _is_image(image):
                problem = "broken_line: an image without id or file_name"
                yield Row(f"{name}: images {number}", [], f"{part}#{number}", problem=problem)
                continue
            url, lines = str(image["file_name"]), captions[image["id"]]
            path, trouble = find(url)
            split = split_of_row(None, path, part, reading)
            yield Row(url, lines, path or f"{part}#{number}", group=str(image["id"]), problem=trouble, split=split)
        for number, problem in unread:
            yield Row(f"{name}: annotations {number}", [], f"{part}#annotations {number}", problem=problem)


class Karpathy(_Annotations):
    """Karpathy's split files of COCO and Flickr30k; "train+restval" unless another ``split`` is asked for."""

    about = "one of Karpathy's split files (dataset_flickr30k.json) and its images"

    def fits(self, path: Path) -> bool:
        listed: Any = _content(path).get("images")
        return isinstance(listed, list) and any(_is_entry(entry) for entry in listed[:10])

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        listed, name = _content(part)["images"], reading.name_of(part)
        find = finder(part, reading, [_name(image) for image in listed[:SAMPLE] if _is_entry(image)])
        for number, image in enumerate(listed, 1):
            if not _is_entry(image):
                problem = "broken_line: an entry without split, filename or sentences"
                yield Row(f"{name}: images {number}", [], f"{part}#{number}", problem=problem)
                continue
            url = _name(image)
            path, trouble = find(url)
            captions, split = one_line(texts(image["sentences"])), str(image["split"])
            group = str(image.get("cocoid", image.get("imgid", number)))
            yield Row(url, captions, path or f"{part}#{number}", group=group, problem=trouble, split=split)


def _name(image: Mapping[str, Any]) -> str:
    return "/".join(str(piece) for piece in (image.get("filepath", ""), image["filename"]) if piece)


def _is_image(value: Any) -> bool:
    return _has(value, "id", "file_name") and isinstance(value["id"], int | str)


def _is_entry(value: Any) -> bool:
    return _has(value, "split", "filename", "sentences") and isinstance(value["sentences"], list)


def _has(value: Any, *keys: str) -> bool:
    return isinstance(value, Mapping) and all(key in value for key in keys)


@lru_cache(maxsize=4)
def _content(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; an empty one if it holds none."""
    if path.suffix != ".json" or not path.is_file():
        return {}
    try:
        content = json_in(path)
    except UserError:
        return {}  # a table names its fault, unless it is one of JSON lines
    return content if isinstance(content, dict) else {}
