"""Named rules on a caption, as SQL conditions (DuckDB, RE2) on its normalised form ``c``.

``MEANINGLESS`` are the texts that name or number an image without saying what is in it; a card switches single
ones off by name (``text_rules.switched_off``). The order is the order in which a caption is charged to a rule.
"""

from __future__ import annotations

import re

from filip.data.cards import TextRuleSettings
from filip.data.lists.duckdb_io import sql_identifier, sql_literal
from filip.data.lists.python_rules import active_rules
from filip.errors import UserError

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

MOST_REPEATS = 10  # a list of URLs may have a caption so often, as in the paper

# name: regular expressions (case-insensitive); the rule holds when one of them matches
MEANINGLESS: dict[str, tuple[str, ...]] = {
    "file_name": (rf"^\S+{_EXTENSION}$", rf"^{_CAMERA}[\s_\-]*[(\[]?\d*[)\]]?{_EXTENSION}$"),
    "camera_name": (
        rf"^{_NUMBERED}[(\[]?\d+[)\]]?([\s_\-.]+[a-z]{{0,3}}\d+)*$",
        # after the day, only a time, a running number, or something joined by an underscore: no words
        rf"^{_CAMERA}[\s_\-]*(from )?\d{{4}}[\-_.]?\d{{2}}[\-_.]?\d{{2}}(at|[ap]\.?m\b|wa\d+|_[a-z]+|[^\p{{L}}])*$",
        r"^p\d{6,}$",
        r"^(olympus|minolta|konica|samsung|casio|kodak|sony|pentax|fuji)?\s*(digital (still )?camera|dsc|camera"
        r" pictures|exif_jpeg_picture|exif_jpeg_t422)$",
    ),
    "placeholder": (
        r"^[\[(<\"']*(untitled|no (title|caption|description|alt|alt text|name|image|photo)|image|img|photo|"
        r"picture|pic|photograph|thumbnail|thumb|avatar|alt|alt text|alternative text|null|none|nan|n/?a|"
        r"undefined|unknown|default|caption|description|title|image not (found|available)|"
        r"click (here|(to|for) (enlarge|view|zoom|larger|full).*)|read more|loading|coming soon|"
        r"processed with vsco.*|exif_jpeg_picture|lorem ipsum.*)[\])>\"'.…]*$",
    ),
    "url": (
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
}


def conditions(rules: TextRuleSettings) -> dict[str, str]:
    """Return, by rule name, the SQL condition that is true if the caption ``c`` (with its ``pairs``) must be dropped.

    Needs the columns c, pairs, and a column of verdicts for each active rule of :mod:`filip.data.lists.python_rules`.
    Raises UserError when a rule to switch off does not exist.
    """
    unknown = sorted(set(rules.switched_off) - set(MEANINGLESS))
    if unknown:
        raise UserError(f"text_rules.switched_off names {', '.join(unknown)}; the rules are {', '.join(MEANINGLESS)}")
    words = "(length(c) - length(replace(c, ' ', '')) + 1)"
    found = {
        "empty": "c = ''",
        "too_short": f"c <> '' AND (length(c) < {rules.min_characters} OR {words} < {rules.min_words})",
        "too_long": f"length(c) > {rules.max_characters} OR {words} > {rules.max_words}",
    }
    if rules.meaningless:
        for name, patterns in MEANINGLESS.items():
            if name not in rules.switched_off:
                matches = " OR ".join(f"regexp_matches(c, {sql_literal(p)}, 'i')" for p in patterns)
                found[name] = f"c <> '' AND ({matches})"
    # columns, as judge_block writes them
    found |= {rule: sql_identifier(rule) for rule in active_rules(rules)}
    repeats = MOST_REPEATS if rules.max_repeats is None else rules.max_repeats
    if repeats:
        found["repeated"] = f"pairs > {repeats}"
    return found
