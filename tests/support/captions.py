"""Captions that people wrote for pictures, in several languages, and what is measured on them.

``short_captions.tsv.gz`` holds Unicode CLDR short names as packed in emojibase-data 17.0.0 (MIT): labels in twelve
languages, 1,200 English and 400 of each other language.
"""

import csv
import gzip
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.cards import SourceCard, TextRuleSettings
from filip.data.lists.language import are_english
from filip.data.text_rules import apply_text_rules

# Texts that a tokenizer has to clean, pad and cut.
UNTIDY_CAPTIONS = ["a photo of a cat", "two dogs & a bird!", "", "It&amp;#39;s  CafÃ© time, ½ price " + "x " * 50]

DATA = Path(__file__).resolve().parents[1] / "data"


def labelled_captions() -> dict[str, list[str]]:
    result = defaultdict(list)
    with gzip.open(DATA / "short_captions.tsv.gz", "rt", encoding="utf-8") as file:
        for line in file:
            language, caption = line.rstrip("\n").split("\t")
            result[language].append(caption)
    return dict(result)


def verdicts_on_kinds(folder: Path, name: str = "labelled_captions") -> list[dict[str, Any]]:
    """Return the sample with what the text rules do: ``found`` is "keep" or the rule that drops the caption.

    It was written for the rules, but for class names (clip_benchmark, MIT) and territories and time zones (Unicode CLDR
    in Babel). The furniture rule learns from it.
    """
    with open(DATA / f"{name}.tsv", encoding="utf-8") as file:
        sample = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    urls = [str(number) for number in range(len(sample))]
    table = pa.table({"url": urls, "caption": [row["caption"] for row in sample]})
    pq.write_table(table, folder / "list.parquet")
    apply_text_rules(
        folder / "list.parquet",
        folder / "kept.parquet",
        SourceCard("sample", text_rules=TextRuleSettings(max_repeats=0)),
        dropped=folder / "dropped.parquet",
        processes=1,
    )
    dropped = pq.read_table(folder / "dropped.parquet").to_pylist()
    reasons = {row["url"]: row["reason"] for row in dropped}
    return [{**row, "found": reasons.get(url, "keep")} for url, row in zip(urls, sample, strict=True)]


def language_accuracy(least_words: int = 1, most_words: int = 1000) -> dict[str, float]:
    """Return shares of English and of other languages that the rule accepts, for captions of that many words."""
    kept: dict[bool, list[bool]] = {True: [], False: []}
    for language, captions in labelled_captions().items():
        chosen = [c for c in captions if least_words <= len(c.split()) <= most_words]
        kept[language == "en"] += are_english(chosen)
    return {
        "english_recall": float(np.mean(kept[True])),
        "others_kept": float(np.mean(kept[False])),
        "english": len(kept[True]),
        "others": len(kept[False]),
    }
