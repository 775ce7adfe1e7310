"""The rules that filter captions, by the names under which the funnel counts their drops.

Most are SQL conditions (DuckDB, RE2) on a caption's normalised form ``c``: ``MEANINGLESS`` has the texts that name or
number an image without describing it; a card switches single ones off (``text_rules.switched_off``). What SQL cannot do
is a Python function: captions and settings in, True for each caption that it drops out.

    @python_rule("shouting", applies=lambda settings: settings.no_shouting)
    def shouting(captions, settings): return [caption.isupper() for caption in captions]

It runs in worker processes over the distinct, normalised captions. The first rule that drops a caption is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from filip.common.errors import UserError
from filip.data.cards import TextRuleSettings
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
_PICTURE = r"(image|photo|picture|photograph|pic)"
_NETWORKS = r"(facebook|twitter|instagram|pinterest|youtube|linkedin|whatsapp|tiktok|snapchat)"
_AGENCIES = r"(getty ?images|shutterstock|istock(photo)?|alamy( stock photo)?|adobe ?stock|unsplash|depositphotos)"
# Words of a page: a text of them alone, with one of the first kind, describes nothing ("Hamburger menu icon").
_OF_PAGES = (
    r"((image|photo|picture|thumbnail|avatar|logo|icon|banner|attachment|podcast|advert|coupon|option|review|detail)s?"
    r"|gravatar|favicon|placeholder|load(ing|ed)?|unavailable|click|swipe|zoom|enlarge|toggle|subscribe|newsletter|tweet"
    r"|admin|web ?site|home ?page|footer|header|sidebar|widget|rss|spotify|twitch|checkout|wish ?list|log ?in"
    r"|sign ?(in|up)|null|undefined|captcha|paypal|mastercard|dummy|chevron|sku|ads|sponsored|denied|verified|untitled"
    r"|bg|img|asset|tracking|info|discount)"
)
_WITH_THEM = (
    r"(a|all|an|any|are|at|be|by|can|for|from|full|get|here|in|is|it|its|more|my|new|next|no|not|now|of|off|on|or|our|out"
    r"|page|post|previous|see|site|sized?|larger?|screen|this|to|up|us|via|view|with|you|your|access|add|available|buy"
    r"|choose|compare|failed|follow|gallery|hamburger|hero|lazy|link|listen|main|menu|open|pixel|product|author|user"
    r"|profile|company|read|report|sample|save|select|share|shop|show|skip|slide|stock|customer|purchase|arrow|button|left"
    r"|right|down|video|visa|default|feed|back|go|written|design|amazon|wp|thumb|phone|cart|\d+(x\d+)?)"
)
_CALL = (
    r"(add|book|browse|buy|choose|compare|find|follow|get|join|listen|order|read|register|report|request|see|select|shop"
    r"|show|skip|start|try|use|view|visit|watch)"
)
_CALLED = (
    r"(a|all|an|at|compare|for|free|full|in|it|now|on|online|our|the|this|to|today|us|your|ads?|apps?|cart|code|deals?"
    r"|details|(apple )?podcasts|involved|look|options?|posts?|prices?|quote|results?|stay|stores?|started|table"
    r"|tickets?|trailer|trial|video|website)"
)
_TAGS = "a|abbr|b|blockquote|br|center|div|em|embed|font|h[1-6]|hr|i|iframe|img|li|ol|p|script|span|strong|style"
_TAGS += "|sub|sup|table|td|tr|u|ul"

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
        rf"^{_AGENCIES}[_\-]\S+$",
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
    "placeholder": (
        r"^[\[(<\"']*(untitled|no (title|caption|description|alt|alt text|name|image|photo)|image|img|photo|"
        r"picture|pic|photograph|thumbnail|thumb|avatar|alt|alt text|alternative text|null|none|nan|n/?a|"
        r"undefined|unknown|default|caption|description|title|image not (found|available)|"
        r"click (here|(to|for) (enlarge|view|zoom|larger|full).*)|read more|loading|coming soon|"
        r"processed with vsco.*|exif_jpeg_picture|lorem ipsum.*)[\])>\"'.…]*$",
        rf"^no {_PICTURE}s?( (description|preview))?( (is )?(yet )?available)?\.?$",
        rf"^{_PICTURE}s? (is )?(not|un) ?-?(found|available)( yet)?\.?$",
        rf"^(image )?may (contain:?|be an? ({_PICTURE}|graphic|illustration|meme|cartoon|screenshot)) ",  # Facebook's
        r"^(featured|product|main|header|hero|background|post|article|blog|gallery|slide(show|r)?|cover|preview|related"
        rf"|decorative|profile|user|site|company|brand|store)[\s_\-]({_PICTURE}|avatar|logo|icon|thumbnail|banner)s?"
        r"( \d+)?$",
        rf"^({_PICTURE} )?(logo|icon|banner|spacer|divider|separator|placeholder|result.*|description)$",
        r"^(insert|add|enter) (an? )?(alt( text)?|caption|description)( here)?$",
        r"^(alt=|\[object \w+\]$|this is an? (placeholder|sample|test|dummy)\b|thumbnail (for|of) )",
        r"(^(avatar|profile (photo|picture)) (of|for) .*|['’]s (avatar|profile (photo|picture|image)))$",
        r"^(blank|transparent|spacer|empty|(logo|icon)@\dx|(arrow|chevron)[\s_\-](left|right|up|down))$",
        rf"^({_PICTURE}|slide|page)? ?\d+ of \d+$",
    ),
    "page_text": (
        r"^this image has an empty alt attribute",  # WordPress's
        r"^(please )?enable (javascript|cookies)",
        r"\b(your browser does not support|we use cookies|all rights reserved)\b",
        r"^(accept (all )?cookies|skip to .*|back to top|return to (home ?page|top)|toggle navigation|next|previous"
        r"|close|search|log ?(in|out)|sign (in|up)|my account|contact us|about us|quick view"
        r"|(next|previous) (slide|page|post)|zoom (in|out)|continue reading|leave a comment|no comments( yet)?"
        r"|opens? in (a )?new (tab|window)|play video|tap to unmute|loading|404\b.*|page not found|advertise?ment"
        r"|sponsored( (content|post))?)[.!…]*$",
        r"^(add to (cart|bag|basket|wish ?list)|(buy|shop|order|book|download|apply) (it )?now)\b.{0,30}$",
        r"^((see|show|load|learn|read|view|discover) (more|all|details)|view (larger|full)\b.*|watch the video"
        r"|download pdf)$",
        r"^(click|tap|hover)( here| image| on( the)? image)? (to|for) ",
        rf"^(share|tweet|pin|print|email|like|follow)( (this|it|us|page|post|on|by|via|{_NETWORKS}))+$",
        r"^(subscribe|sign up|join)( to| for)? (our|the) (newsletter|mailing list)",
        r"^(free (shipping|delivery)\b.*|(out of|in) stock|sold out|sale!?|best (price|sellers?)|\d+ ?% off)$",
        r"^(rated )?\d(\.\d+)? ?(out of 5|stars?)( stars)?$",
        rf"^{_NETWORKS}( (icon|logo|button|link|page))?$",
        r"^(get it on google play|(download|available) on the app ?store)$",
        rf"^{_PICTURE}s? ((source|credits?|courtesy)\b|by (?-i:[A-Z])).{{0,40}}$",
        rf"^{_AGENCIES}$",
        rf"^\W*({_WITH_THEM}[\W_]+)*{_OF_PAGES}([\W_]*\d+|[\W_]+({_OF_PAGES}|{_WITH_THEM}))*\W*$",
        rf"^{_CALL}( ({_CALLED}|{_NETWORKS}))+[.!…]*$",
        r"^(view|see|browse) all (posts|articles|stories|products|photos|results|reviews)\b",
        r"^(scroll (down|up|to)|swipe|are you (a robot|human)|limited time|ads by|posted (in|by)|use code)\b.{0,30}$",
        r"^(save|extra|enjoy|take|get) (an extra |up to )?\d+ ?%",
        rf"^((stock )?{_PICTURE}|item|product|article|ref|sku|isbn|asin)( (id|no|number))?[\s:#.]+[a-z]*\d[\w\-]*$",
        r"^powered by \S+$",
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
}


def conditions(rules: TextRuleSettings) -> dict[str, str]:
    """Return, by rule name, the SQL condition that is true if the caption ``c`` (with its ``pairs``) must be dropped.

    Needs the columns c, pairs, and a column of verdicts for each active Python rule.
    Raises UserError when a rule to switch off does not exist.
    """
    unknown = sorted(set(rules.switched_off) - set(MEANINGLESS))
    if unknown:
        raise UserError(f"text_rules.switched_off names {', '.join(unknown)}; the rules are {', '.join(MEANINGLESS)}")
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
    # columns, as judge_block writes them
    found |= {rule: sql_identifier(rule) for rule in active_rules(rules)}
    repeats = MOST_REPEATS if rules.max_repeats is None else rules.max_repeats
    if repeats:
        found["repeated"] = f"pairs > {repeats}"
    return found


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
