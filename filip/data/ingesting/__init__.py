"""The layouts that :mod:`filip.data.ingest` reads: one class per layout, in the order in which they are tried.

A new layout is a subclass of :class:`filip.data.ingesting.layout.Layout` and a line here.
"""

from __future__ import annotations

from filip.data.ingesting.annotations import Coco, Karpathy
from filip.data.ingesting.arrow import ArrowImages
from filip.data.ingesting.layout import Layout
from filip.data.ingesting.parquet import ParquetImages
from filip.data.ingesting.table import Table
from filip.data.ingesting.tars import Tars
from filip.data.ingesting.text_beside import TextBeside

LAYOUTS: dict[str, Layout] = {
    "karpathy": Karpathy(),
    "coco": Coco(),
    "tars": Tars(),
    "arrow": ArrowImages(),
    "parquet": ParquetImages(),
    "table": Table(),
    "text_beside": TextBeside(),
}
