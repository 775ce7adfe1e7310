"""Judge each back-translation by rules, by statistics over them all, and by its pivot text.

A round trip that returns the caption itself adds nothing; one that loses a number or a name, or runs into a loop,
says something else. A small model also has favourite sentences: to "flag: Chad" and a dozen others it answers
"Flag of the United States"; that shows only over the whole data set.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.common.files import digest, replacing
from filip.data.captions.translation_cache import TranslationCache
from filip.data.lists import duckdb_io
from filip.data.lists.language import are_english
from filip.data.lists.parquet_rows import row_group
from filip.data.stage import do_blocks
from filip.text.words import plain, words_of

PLAIN = "trim(lower(regexp_replace({}, '[^\\p{{L}}\\p{{N}}]+', ' ', 'g')))"  # filip.text.words.plain, in SQL
# Many different captions with one back-translation: a favourite of the model, not a paraphrase.
MAX_ORIGINALS = 3
LENGTH_RATIO = 2.0  # characters of the longer text / of the shorter ...
LENGTH_SLACK = 10  # ... unless they differ by no more than this: "cat" → "a small cat" is a paraphrase
LOOP = 3  # a word that the original has n times may occur n + LOOP - 1 times
TITLE_CASE = 0.6  # captions with a larger share of capitalised words are titles: capitals mean nothing there
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]['\"”’)\]]*\s+$")
_NUMBER = re.compile(r"\d+")
_GROUPED = re.compile(r"(?<=\d)[.,](?=\d{3}\b)")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}


def rejections(originals: Sequence[str], translations: Sequence[str]) -> list[str | None]:
    """Return the reason why each translation may not replace its original, or None where it may."""
    reasons = [_by_words(*pair) for pair in zip(originals, translations, strict=True)]
    # by far the slowest rule, so it runs last and in one batch
    left = [i for i, reason in enumerate(reasons) if reason is None]
    for i, english in zip(left, are_english([translations[i] for i in left]), strict=True):
        if not english:
            reasons[i] = "not_english"
    return reasons


def _by_words(original: str, translation: str) -> str | None:
    """Apply all rules except the one about the language."""
    translated_words = words_of(translation)
    if not translated_words:
        return "empty"
    # half of all translations equal the caption
    original_words = translated_words if translation == original else words_of(original)
    if translated_words == original_words:
        return "identical"
    if abs(len(translation) - len(original)) > LENGTH_SLACK:
        if len(translation) > LENGTH_RATIO * len(original):
            return "too_long"
        if len(original) > LENGTH_RATIO * len(translation):
            return "too_short"
    if loops(original_words, translated_words):
        return "repetitive"
    if _NUMBER.search(original) or not NUMBER_WORDS.keys().isdisjoint(original_words):
        ones = Counter({NUMBER_WORDS["one"]: plain(original).split().count("one")})  # "one" may become "a"
        if numbers(original) - ones - numbers(translation):
            return "number_lost"
    # most captions have no capitals and thus no names
    if original != original.lower():
        folded = _fold(translation)
        if any(name not in folded for name in names(original)):
            return "name_lost"
    return None


def numbers(text: str) -> Counter[str]:
    """Return the numbers in a text: "two" and "2" are the same, "1,000" is 1000."""
    digits = _NUMBER.findall(_GROUPED.sub("", text))
    words = [NUMBER_WORDS[word] for word in plain(text).split() if word in NUMBER_WORDS]
    return Counter([number.lstrip("0") or "0" for number in digits]) + Counter(words)


def names(text: str) -> list[str]:
    """Return the capitalised words inside a sentence, in plain lower-case letters; none for a title or an exclamation.

    The first word of a sentence is capitalised in any case: "A wheel! Put the brake on" names nobody.
    """
    words = list(_WORD.finditer(text))
    capitalised = [word for word in words if word[0][0].isupper()]
    if len(words) > 3 and len(capitalised) > TITLE_CASE * len(words):
        return []
    inside = [word for word in capitalised if word is not words[0] and len(word[0]) > 1]
    return [_fold(word[0]) for word in inside if not _SENTENCE_END.search(text[: word.start()])]


def _fold(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def loops(original_words: list[str], translated_words: list[str]) -> bool:
    """Return whether a word occurs much more often than in the original."""
    if len(translated_words) - len(set(translated_words)) < LOOP - 1:
        return False  # no word occurs often enough
    before, after = Counter(original_words), Counter(translated_words)
    return any(count >= before[word] + LOOP for word, count in after.items())


# The rules judge this many candidates while a process starts and reads its word lists.
WORTH_A_PROCESS = 300_000


def judge(
    con: duckdb.DuckDBPyConnection, caches: list[TranslationCache], captions: Path, work: Path, processes: int
) -> str:
    """Judge every candidate; return SQL of (caption, pivot_index, back, reason), where reason NULL = accepted."""
    nothing = "(SELECT '' AS caption, 0 AS pivot_index, '' AS back, '' AS reason WHERE false)"
    if not caches:
        return nothing
    union = " UNION ALL ".join(
        f"SELECT caption, {pivot} AS pivot_index, back FROM {duckdb_io.parquet(captions)} "
        f"JOIN {cache.sql()} ON caption = text"
        for pivot, cache in enumerate(caches)
    )
    back_plain, caption_plain = PLAIN.format("back"), PLAIN.format("caption")
    nth = "row_number() OVER (PARTITION BY caption, back_plain ORDER BY pivot_index)" if len(caches) > 1 else "1"
    # a killed run may be restarted with another engine or pivot
    engines_id = digest([cache.folder.name for cache in caches])[:16]
    candidates = work / f"candidates-{engines_id}-{MAX_ORIGINALS}.parquet"
    if not candidates.exists():
        duckdb_io.write_parquet(
            con,
            f"""WITH plain AS (SELECT *, {back_plain} AS back_plain FROM ({union})),
                common AS (
                    SELECT pivot_index, back_plain FROM plain GROUP BY ALL HAVING count(*) > {MAX_ORIGINALS}),
                favourites AS (
                    SELECT pivot_index, back_plain, true AS collapsed
                    FROM plain SEMI JOIN common USING (pivot_index, back_plain) GROUP BY ALL
                    HAVING count(DISTINCT {caption_plain}) > {MAX_ORIGINALS})
                SELECT caption, pivot_index, back, coalesce(collapsed, false) AS collapsed, {nth} AS nth
                FROM plain LEFT JOIN favourites USING (pivot_index, back_plain) ORDER BY caption, pivot_index""",
            candidates,
            "translate: candidates",
        )
    processes = min(processes, -(-pq.read_metadata(candidates).num_rows // WORTH_A_PROCESS))
    shown: Any = {"what": "translate: guard", "unit": "candidates"}
    files = do_blocks(judge_block, candidates, f"{work}/judged-{engines_id}-", None, processes, **shown)
    return duckdb_io.parquet(files) if files else nothing


def judge_block(candidates: Path, group: int, file: Path) -> int:
    """Assign to each candidate of one row group the reason to drop it, or None."""
    table = row_group(candidates, group)
    reasons = rejections(table["caption"].to_pylist(), table["back"].to_pylist())
    for reason, condition in (
        ("collapsed", table["collapsed"]),
        ("duplicate", pc.greater(table["nth"], 1)),  # another pivot gave the same
    ):
        for i in np.flatnonzero(condition).tolist():
            reasons[i] = reasons[i] or reason
    table = table.select(["caption", "pivot_index", "back"]).append_column("reason", pa.array(reasons, pa.string()))
    with replacing(file) as part:
        pq.write_table(table, part, compression="zstd", use_dictionary=["reason"])
    return table.num_rows
