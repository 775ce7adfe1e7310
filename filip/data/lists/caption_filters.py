"""The rules that filter captions, by the names under which the funnel counts their drops.

Most are SQL conditions (DuckDB, RE2) on a caption's normalised form ``c``: ``MEANINGLESS`` has the texts that name or
number an image without describing it, :mod:`filip.data.lists.furniture` tells the words of pages. A card
switches single ones off (``text_rules.switched_off``). What SQL cannot do is a Python function: captions and settings
in, True for each caption that it drops out.

    @python_rule("shouting", applies=lambda settings: settings.no_shouting)
    def shouting(captions, settings): return [caption.isupper() for caption in captions]

It runs in worker processes over the distinct, normalised captions. The first rule that drops a caption is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ftfy
from ftfy.badness import is_bad

from filip.common.errors import UserError
from filip.data.cards import TextRuleSettings
from filip.data.lists import furniture
from filip.data.lists.duckdb_io import sql_identifier, sql_literal
from filip.data.lists.language import are_english, are_in

# White space of every kind becomes one space; zero-width characters and the soft hyphen vanish.
NORMALISE = (
    "trim(regexp_replace(regexp_replace(nfc_normalize({}), '[\\x{{200B}}\\x{{FEFF}}\\x{{00AD}}]', '', 'g'), "
    "'[\\s\\p{{Z}}\\p{{Cc}}]+', ' ', 'g'))"
)

_EXTENSION = r"\.(jpe?g|jfif|png|gif|bmp|tiff?|webp|svg|hei[cf]|raw|cr2|nef|psd|ico|avif|mp4|mov|avi|pdf)"
_CAMERA = (
    r"(img|imag|image|dscn?|dscf|dsc|pict|imgp|pana|mvi|sam|gopr|dji|pxl|vid|photo|picture|pic|scan|"
    r"scanned image|screen ?shots?|whatsapp image|untitled|slide|figure|fig|page|foto|bild|file)"
)
# "SAM_0123" is a camera's, "Sam 7" and "Figure 8" need not be: a space does not join these to a number
_WORDS = r"(sam|figure|page)"
_NUMBERED = rf"({re.sub('sam[|]|figure[|]|page[|]', '', _CAMERA)}[\s_\-#.]*|{_WORDS}[_\-#.]*)"
# in full or as the usual abbreviation: "Mar 2016" is a date, "Mars 2016" and "Marathon 2016" are not
_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|"
    r"nov(ember)?|dec(ember)?)\.?"
)
_DOMAIN = r"\.(com|net|org|info|co\.uk|de|ru|io|edu|gov)"
_TAGS = "a|abbr|b|blockquote|br|center|div|em|embed|font|h[1-6]|hr|i|iframe|img|li|ol|p|script|span|strong|style"
_TAGS += "|sub|sup|table|td|tr|u|ul"

LEARNED = ("mojibake", "furniture")  # "meaningless" rules that are no regular expressions
MOST_REPEATS = 10  # a list of URLs may have a caption so often, as in the paper

# name: regular expressions (case-insensitive); the rule holds when one of them matches
MEANINGLESS: dict[str, tuple[str, ...]] = {
    "file_name": (
        rf"^\S+{_EXTENSION}(\?\S*)?$",
        rf"^{_CAMERA}[\s_\-]*[(\[]?\d*[)\]]?{_EXTENSION}$",
        r"^[\w+\-]{8,12}\._\S+_$",  # Amazon's
        r"^(fb_img|received|mmexport|unnamed|download|maxresdefault|hqdefault|s-l)[\s_\-]*[(\[]?\d*[)\]]?$",
        r"^(\S+[_\-])?\d{2,4}x\d{2,4}$",  # WordPress's sizes
        r"^\S+[_\-](v\d+|bg)$",
        r"^(cropped|thumb|resized|scaled)[_\-]\S+$",
        r"^(getty ?images|shutterstock|istock(photo)?|adobe ?stock|depositphotos)[_\-]\S+$",
        r"^[a-z]+([_\-][a-z]+)+[_\-]\d{3,}$",
    ),
    "camera_name": (
        rf"^{_NUMBERED}[(\[]?\d+[)\]]?([\s_\-.]+[a-z]{{0,3}}\d+)*$",
        # after the day, only a time, a running number, or something joined by an underscore: no words
        rf"^{_CAMERA}[\s_\-]*(from )?\d{{4}}[\-_.]?\d{{2}}[\-_.]?\d{{2}}(at|[ap]\.?m\b|wa\d+|_[a-z]+|[^\p{{L}}])*$",
        r"^(p\d{6,}|img_[a-z]\d+)$",
        r"^(olympus|minolta|konica|samsung|casio|kodak|sony|pentax|fuji)?\s*(digital (still )?camera|dsc|camera"
        r" pictures|exif_jpeg_picture|exif_jpeg_t422)$",
    ),
    "generated": (r"description automatically generated",),  # Office's
    "url": (
        r"^data:\w+/",
        r"^(https?://|www\.)\S+$",
        rf"^\S+{_DOMAIN}/\S*$",
        rf"^(?-i:[^A-Z\s])\S*{_DOMAIN}$",  # with a capital it is a name: "Amazon.com"
        r"^\S+@\S+\.\w+$",
    ),
    "html": (rf"<\s*/?\s*({_TAGS})(\s[^>]*)?/?>", r"\b(href|src)\s*=\s*[\"']"),
    "template": (
        r"\{\{.*\}\}",
        r"\$\{[\w.]+\}",
        r"%[A-Z_]{3,}%",
        r"^\[(caption|gallery|img|url)\]$",
        r"\[(caption|gallery|img|url)(\s+\w+)?=.*\]",  # "photo of a dog [gallery]" has no attribute
        r"\[/(caption|gallery|img|url)\]",
        r"^(\{[\w.]*\}|\[\[.*\]\]|<[%?].*[%?]>|%%?\w+%%?|[$@][\p{L}_][\w.]*|#\{.*\}|\{%.*%\}|__\w+__)$",
        r"^(&(amp;)?#?\w+;\s*)+$",
    ),
    "hash": (
        r"^[0-9a-f]{16,}([_\-][a-z0-9]{1,4})*$",
        r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        r"^([0-9]+[a-f]|[a-f]+[0-9])[0-9a-f]{6,}$",
        r"^[A-Za-z0-9+/=]*([A-Za-z]+[0-9]+){4}[A-Za-z0-9+/=]*$",  # three may be a formula: C6H12O6
    ),
    "date": (
        r"^\d{4}[\-/._]\d{1,2}[\-/._]\d{1,2}([\sT,_\-]+\d{1,2}([:.h\-_]\d{2}){1,2}.*)?$",
        r"^\d{1,2}[\-/._]\d{1,2}[\-/._]\d{2,4}([\s,]+\d{1,2}:\d{2}.*)?$",
        rf"^(\w+day,? )?\d{{1,2}}(st|nd|rd|th)?[\s\-]+(of )?{_MONTH},?[\s\-]+\d{{2,4}}$",
        rf"^(\w+day,? )?{_MONTH} \d{{1,2}}(st|nd|rd|th)?,? \d{{4}}$",
        rf"^{_MONTH} \d{{4}}$",
        r"^\d{1,2}:\d{2}(:\d{2})?\s*([ap]\.?m\.?)?$",
        r"^(19|20)\d{6}[_\-]\d{4,6}$",
    ),
    "number": (r"^[^\p{L}]*\d[^\p{L}]*(_[a-z])?$", r"^(no|nr|#|number|item|sku)[.:\s#]*\d+$"),
    "no_letters": (r"^[^\p{L}]*$",),
    # of a credit card, and who was born when
    "personal_data": (r"\b(\d{4}[ \-]?){3}\d{4}\b", r"\b(date of birth|d\.?o\.?b\.?)\W+\d"),
}


def conditions(rules: TextRuleSettings) -> dict[str, str]:
    """Return, by rule name, the SQL condition that is true if the caption ``c`` (with its ``pairs``) must be dropped.

    Needs the columns c, pairs, and a column of verdicts for each active Python rule.
    Raises UserError when a rule to switch off does not exist.
    """
    names = [*MEANINGLESS, *LEARNED]
    unknown = sorted(set(rules.switched_off) - set(names))
    if unknown:
        raise UserError(f"text_rules.switched_off names {', '.join(unknown)}; the rules are {', '.join(names)}")
    words = "(length(c) - length(replace(c, ' ', '')) + 1)"
    # Chinese has no spaces between words, of which each sign is at least a part
    fewest = rf"greatest({words}, length(regexp_replace(c, '\P{{Han}}', '', 'g')))" if rules.min_words > 1 else words
    found = {
        "empty": "c = ''",
        "too_short": f"c <> '' AND (length(c) < {rules.min_characters} OR {fewest} < {rules.min_words})",
        "too_long": f"length(c) > {rules.max_characters} OR {words} > {rules.max_words}",
    }
    if rules.meaningless:
        for name, patterns in MEANINGLESS.items():
            if name not in rules.switched_off:
                matches = " OR ".join(f"regexp_matches(c, {sql_literal(p)}, 'i')" for p in patterns)
                found[name] = f"c <> '' AND ({matches})"
        distinct = "len(list_distinct(string_split(lower(c), ' ')))"
        found["repeats_words"] = f"{words} > 3 AND 3 * {distinct} <= {words}"  # dog dog dog dog
    # columns, as judge_block writes them; the least certain rules last
    columns = {rule: sql_identifier(rule) for rule in active_rules(rules)}
    found |= {rule: column for rule, column in columns.items() if rule not in LEARNED}
    repeats = MOST_REPEATS if rules.max_repeats is None else rules.max_repeats
    if repeats:
        found["repeated"] = f"pairs > {repeats}"
    return found | {rule: columns[rule] for rule in LEARNED if rule in columns}


Drops = Callable[[Sequence[str], TextRuleSettings], Sequence[bool]]


@dataclass(frozen=True)
class PythonRule:
    """A rule: ``drops`` is called if ``applies``, so a rule that a card has switched off is not run."""

    applies: Callable[[TextRuleSettings], bool]
    drops: Drops


PYTHON_RULES: dict[str, PythonRule] = {}


def python_rule(name: str, applies: Callable[[TextRuleSettings], bool]) -> Callable[[Drops], Drops]:
    """Register a rule under ``name``; ``applies`` returns from a card's settings whether it is on."""

    def register(drops: Drops) -> Drops:
        PYTHON_RULES[name] = PythonRule(applies, drops)
        return drops

    return register


def active_rules(settings: TextRuleSettings) -> dict[str, PythonRule]:
    """Return the rules that these settings switch on."""
    return {name: rule for name, rule in PYTHON_RULES.items() if rule.applies(settings)}


@python_rule("not_english", applies=lambda settings: settings.language in (True, ["en"]))
def not_english(captions: Sequence[str], settings: TextRuleSettings) -> list[bool]:
    return [not english for english in are_english(captions)]


@python_rule("other_language", applies=lambda settings: settings.language not in (True, False, ["en"]))
def other_language(captions: Sequence[str], settings: TextRuleSettings) -> list[bool]:
    return [not allowed for allowed in are_in(captions, settings.language)]


def _meaningless(name: str) -> Callable[[TextRuleSettings], bool]:
    return lambda settings: settings.meaningless and name not in settings.switched_off


@python_rule("mojibake", applies=_meaningless("mojibake"))
def mojibake(captions: Sequence[str], settings: TextRuleSettings) -> list[bool]:
    # what ftfy mends is mended for the tokenizer, too
    return [not caption.isascii() and is_bad(ftfy.fix_text(caption)) for caption in captions]


@python_rule("furniture", applies=_meaningless("furniture"))
def is_furniture(captions: Sequence[str], settings: TextRuleSettings) -> list[bool]:
    found = (furniture.odds(captions) > 0).tolist()
    if settings.language in (True, ["en"]):  # what is foreign is dropped as such
        return found
    # it learned English furniture, and takes a fifth of short French captions for some
    english = iter(are_english([caption for caption, is_it in zip(captions, found, strict=True) if is_it]))
    return [is_it and next(english) for is_it in found]
