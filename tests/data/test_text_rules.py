import csv
import json
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filip.common.errors import UserError
from filip.data import text_rules
from filip.data.cards import SourceCard, TextRuleSettings, load_source, overridden, parse_card
from filip.data.lists import caption_filters, furniture
from filip.data.lists.caption_filters import MEANINGLESS
from filip.data.lists.language import are_english
from filip.data.prepare import prepare
from filip.data.text_rules import TextRulesConfig, apply_text_rules, main
from tests.support.captions import language_accuracy, verdicts_on_kinds
from tests.support.manual import code_of

MEANINGLESS_CAPTIONS = {
    "file_name": ["img_0.jpg", "DSC01234.JPG", "photo (1).jpeg", "a-small-dog_300x200.webp", "Screenshot 12.png"],
    "camera_name": ["IMG_1234", "DSC00042", "P1010023", "image 12", "Photo-3", "Screenshot 2019-03-04 at 10.11.12",
                    "IMG_20190304_101112", "IMG-20190304-WA0012", "Screenshot_20190304-101112_Chrome", "SAM_0123",
                    "WhatsApp Image 2019-03-04 at 10.11.12 PM (1)",
                    "OLYMPUS DIGITAL CAMERA", "SONY DSC", "KODAK Digital Still Camera"],
    "generated": ["A picture containing text, outdoor. Description automatically generated"],
    "url": ["https://example.org/a/b?c=1", "www.example.com", "example.co.uk/shop", "me@example.org",
            "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP"],
    "html": ['<img src="a.png">', "A dog <br/> in a park", "<b>Sale</b> now", 'see <a href="x">this</a>'],
    "template": ["{{ product.title }}", "${name}", "%PRODUCT_NAME%", "[caption id=3]A dog[/caption]"],
    "hash": ["5d41402abc4b2a76b9719d911017c592", "123e4567-e89b-12d3-a456-426614174000", "9f86d081884c7d65",
             "a1B2c3D4e5", "5d41402abc4b2a76b9719d911017c592_n"],
    "date": ["2014-05-12", "12/05/2014", "12 May 2014", "May 12, 2014", "20140512_123456", "June 2011", "10:45 am",
             "Mar 2016", "Sept. 2015", "Tuesday, 3rd March 2009"],
    "number": ["12345", "#42", "1,000.50 €", "No. 17", "10152_3921_n", "3/4"],
    "no_letters": ["...", "★★★★★", "- -"],
    "personal_data": ["Ann Lee, card 4111 1111 1111 1111", "Ann Lee, D.O.B. 12/05/1984", "date of birth: 3 May 1990"],
    "mojibake": ["Ð¿ÑÐ¸Ð²ÐµÑ"],
    "furniture": ["Untitled", "image description", "click to enlarge", "Alt text", "Add to cart", "Share on Twitter",
                  "Your browser does not support HTML5 video", "Build Status"],
}  # fmt: skip
MEANINGFUL = [
    "A dog in the park.", "llama", "t-shirt", "camera with flash", "framed picture of a boat", "2 dogs playing",
    "Boeing 747-400 taking off at dusk", "a page from a medieval book", "Route 66 sign at sunset",
    "12 May 2014, two children on a beach", "dog.com mascot in a blue hat", "The best photo I have ever taken",
    "<PERSON> arrives at the premiere", "5 > 3 on a blackboard", "keycap: 10", "Windows 95 start screen",
    "iPhone 6s on a wooden table", "hundred points", "slide in a playground",
    # each was dropped once, as a date, a camera's name, a URL, a template or a hash
    "Marathon 2016", "Mars 2020", "Juno 2007", "Augusta 2013", "Photo 2015-03-04 Wedding of Ann and Bob in Rome",
    "Picture 20140704 fireworks over the river", "Figure 8", "Amazon.com", "photo of a dog [gallery]",
    "C6H12O6", "photo by the river", "a menu on a table", "row row row your boat gently", "arrow", "shopping cart",
    "5 stars on a flag", "a search dog", "Print of a fox", "Next to a closed door", "product image of a red shoe",
]  # fmt: skip


def rule_accuracy(verdicts: list[dict], rule: str) -> tuple[int, int, int]:
    """Count the captions that the rule drops rightly, that any rule drops by this name, and that it should drop."""
    right = sum(row["found"] == row["expected"] == rule for row in verdicts)
    return (right, sum(row["found"] == rule for row in verdicts), sum(row["expected"] == rule for row in verdicts))


def write_list(path: Path, captions: list[str | None], **columns: list) -> Path:
    urls = [f"https://a.org/{i}.jpg" for i in range(len(captions))]
    pq.write_table(pa.table({"url": urls, "caption": pa.array(captions, pa.string()), **columns}), path)
    return path


def rules(**settings) -> SourceCard:
    return SourceCard("t", text_rules=TextRuleSettings(**settings))


def test_each_meaningless_rule_catches_its_kind_and_no_real_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [c for group in MEANINGLESS_CAPTIONS.values() for c in group] + MEANINGFUL
    source = write_list(tmp_path / "l.parquet", captions)
    assert set(MEANINGLESS_CAPTIONS) == {*MEANINGLESS, *caption_filters.LEARNED}
    out = tmp_path / "k.parquet"
    monkeypatch.setattr(text_rules, "SAMPLES", len(captions))
    fragment = apply_text_rules(source, out, rules(language=False, min_characters=1))
    assert pq.read_table(out)["caption"].to_pylist() == MEANINGFUL
    for rule, texts in MEANINGLESS_CAPTIONS.items():
        missed = set(texts) - set(fragment.notes["samples"][rule])
        assert not missed, f"{rule} does not hold for {missed}"
    # every rule can be switched off by name, and then keeps what it alone drops; furniture drops of other rules, too
    for rule, texts in MEANINGLESS_CAPTIONS.items():
        switched_off = [rule, "furniture"]
        apply_text_rules(source, out, rules(language=False, min_characters=1, switched_off=switched_off))
        kept = set(pq.read_table(out)["caption"].to_pylist()) - set(MEANINGFUL)
        kept -= set() if rule == "furniture" else set(MEANINGLESS_CAPTIONS["furniture"])
        assert kept <= set(texts) and kept, f"switching off {rule} kept {kept}"
    with pytest.raises(UserError, match="switched_off names file_names"):
        apply_text_rules(source, out, rules(switched_off=["file_names"]))


def test_repeats_are_counted_over_the_whole_list_after_normalisation(tmp_path: Path) -> None:
    forms = ["café au lait", "cafe\u0301 au lait", "  café\u00a0au\tlait ", "café\u200b au\u2003lait"]
    captions: list[str | None] = [forms[i % 4] for i in range(11)] + ["cafe au lait"] * 10 + [None, "", " \n"]
    captions = captions[::2] + captions[1::2]
    out = tmp_path / "k.parquet"
    card = rules(language=False)
    fragment = apply_text_rules(write_list(tmp_path / "l.parquet", captions), out, card)
    assert dict(Counter(pq.read_table(out)["caption"].to_pylist())) == {"cafe au lait": 10}
    assert {k: v for k, v in fragment.dropped.items() if v} == {"repeated": 11, "empty": 3}
    # an independent count
    texts = [" ".join(unicodedata.normalize("NFC", c or "").replace("\u200b", "").split()) for c in captions]
    assert sum(n for text, n in Counter(texts).items() if n > 10 and text) == 11
    assert apply_text_rules(tmp_path / "l.parquet", out, rules(language=False, max_repeats=0)).n_out == 21


def test_language_rule_recall_and_leakage() -> None:
    measured = language_accuracy(least_words=3)
    assert measured["english"] > 400 and measured["others"] > 1500
    assert measured["english_recall"] >= 0.98
    assert measured["others_kept"] <= 0.025
    short = language_accuracy(least_words=1, most_words=2)
    assert short["english_recall"] >= 0.98, "real short labels must survive"
    assert short["others_kept"] <= 0.25


# By what the language model alone, or a list of words alone, took for another language, or for English.
ENGLISH = {
    "words": ["necktie", "chipmunk", "orangutan", "a game die", "a poultry leg", "falafel, lab coat", "a teddy bear",
              "necktie, spiral notepad, pager", "flag: El Salvador", "hook, ant, crab, wrapped gift"],
    "scripts": ["a view of Tokyo Tower (東京タワー)", "α-helix of a protein"],
    "names": ["flag: Côte d’Ivoire", "flag: São Tomé & Príncipe", "flag: Sint Maarten", "flag: Türkiye",
              "flag: Réunion", "flag: Afghanistan, AF"],
    "typesetting": ["woman’s hat", "A knight’s helmet.", "A great blue heron.", "A yellow lemon.", "The letter K."],
}  # fmt: skip
FOREIGN = {
    "words": ["hund", "ein Hund", "pies na plaży", "en hund på stranden", "mi casa es tu casa"],
    "scripts": ["馴鹿", "塑料瓶", "笑得满地打滚", "笑顔", "끄덕끄덕", "더운 얼굴", "ঘোড়া", "กะโหลกไขว้", "ᖃᐅᔨᓴᕐᓂᖅ", "ጤና"],
    "names": ["Flagge: Österreich", "drapeau : Réunion", "bandera: España", "Hund: ein Tier"],
    "typesetting": ["la veste d’une femme", "der Hut — eine Zeichnung", "“perro en el parque”"],
}


@pytest.mark.parametrize("kind", ENGLISH)
def test_short_captions_are_told_apart_by_words_script_and_names(kind: str) -> None:
    assert are_english([*ENGLISH[kind], *FOREIGN[kind]]) == [True] * len(ENGLISH[kind]) + [False] * len(FOREIGN[kind])


def test_a_list_in_wukong_s_format_keeps_its_chinese_captions(tmp_path: Path) -> None:
    captions = {
        "大白鲨": True, "iphone手机壳": True, "2021新款 连衣裙": True, "红色的狗，在海滩奔跑": True, "海滩": False,
        "cats": False, "a photo of a dog": False, "これは猫です": False, "12345": False, "": False,
    }  # fmt: skip
    with open(tmp_path / "wukong_100m_0.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["dir", "url", "caption"])
        rows.writerows([f"{n:05d}", f"https://a.cn/{n}.jpg", caption] for n, caption in enumerate(captions))
    listed = replace(load_source("wukong100m"), list=str(tmp_path / "*.csv"))
    prepare(listed, tmp_path / "l.parquet", shuffle=False)
    card = overridden(load_source("wukong100m"), "text_rules", {"min_words": 3})
    apply_text_rules(tmp_path / "l.parquet", tmp_path / "k.parquet", card, processes=1)
    kept = pq.read_table(tmp_path / "k.parquet")["caption"].to_pylist()
    assert kept == [caption for caption, stays in captions.items() if stays]


def test_rules_on_labelled_captions(tmp_path: Path) -> None:
    """The furniture rule learned from these, too: here is what would be a regression."""
    verdicts = verdicts_on_kinds(tmp_path)
    assert len(verdicts) >= 500
    for rule in MEANINGLESS.keys() - {"no_letters"}:
        right, found, wanted = rule_accuracy(verdicts, rule)
        assert right >= 0.85 * found and right >= 0.85 * wanted, rule
    accents = [row for row in verdicts if row["kind"] == "accents"]  # names and dishes, the hardest kind
    assert sum(row["found"] == "keep" for row in accents) >= 0.93 * len(accents)
    english = [row for row in verdicts if row["expected"] == "keep" and row["kind"] != "furniture"]
    assert sum(row["found"] == "keep" for row in english) >= 0.965 * len(english)
    right, found, wanted = rule_accuracy(verdicts, "not_english")
    assert right >= 0.93 * found and right >= 0.85 * wanted
    furniture = [row for row in verdicts if row["kind"] == "furniture" and row["expected"] != "keep"]
    assert sum(row["found"] == "keep" for row in furniture) <= 0.05 * len(furniture)
    for kind in ("title", "alt_text", "short"):
        chosen = [row for row in verdicts if row["kind"] == kind]
        assert len(chosen) >= 40 and all(row["found"] == "keep" for row in chosen), kind
    gone = pq.read_table(tmp_path / "dropped.parquet")
    assert gone.num_rows == sum(row["found"] != "keep" for row in verdicts)
    assert gone["url"].to_pylist() == [str(n) for n, row in enumerate(verdicts) if row["found"] != "keep"]


def test_rules_on_shops_news_museums_and_pages(tmp_path: Path) -> None:
    """The furniture rule learned from these texts; ``python -m bench.furniture`` has sources that it has not seen."""
    verdicts = verdicts_on_kinds(tmp_path, "unseen_captions")
    kept = {
        kind: [row["found"] == "keep" for row in verdicts if row["kind"] == kind]
        for kind in dict.fromkeys(row["kind"] for row in verdicts)
    }
    furniture, foreign = kept.pop("furniture"), kept.pop("foreign")
    english = [one for judged in kept.values() for one in judged]
    assert (len(english), len(furniture), len(foreign)) == (170, 121, 40)
    assert sum(english) >= 0.97 * 170 and sum(furniture) <= 0.1 * 121 and sum(foreign) <= 2


def test_funnel_charges_the_first_rule_and_reports_each_alone(tmp_path: Path) -> None:
    captions = ["img_1.jpg"] * 12 + ["der große Hund läuft durch den Park"] * 2 + ["a dog runs in the park"] * 3
    columns = {"n": list(range(17)), "tags": [["x"]] * 17, "row_number": [0] * 17, "reason": [""] * 17}
    source = write_list(tmp_path / "l.parquet", captions, **columns)
    card = tmp_path / "c.yaml"
    card.write_text("text_rules: {max_repeats: 10}\n")
    out, funnel = tmp_path / "k.parquet", tmp_path / "f.json"
    main(TextRulesConfig(str(card), str(source), str(out), str(funnel)))
    report = json.loads(funnel.read_text())
    assert (report["in"], report["out"]) == (17, 3)
    assert report["dropped"] == {"file_name": 12, "not_english": 2}
    assert report["notes"]["alone"]["repeated"] == 12 and report["notes"]["alone"]["file_name"] == 12
    assert report["notes"]["samples"]["not_english"] == ["der große Hund läuft durch den Park"]
    kept = pq.read_table(out)
    assert kept.column_names == ["url", "caption", *columns]
    assert kept["n"].to_pylist() == [14, 15, 16], "order and other columns are the list's"
    assert kept.schema == pq.read_schema(source)
    assert {p.name for p in tmp_path.iterdir()} == {"l.parquet", "c.yaml", "k.parquet", "f.json"}
    main(TextRulesConfig(str(card), str(source), str(out), str(funnel), rules={"language": False}))
    assert json.loads(funnel.read_text())["out"] == 5


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    """The list has several of DuckDB's row groups, so that each thread has its part."""
    captions = [f"a photo of {n % 70_000} boats" if n % 3 else f"boat {n}" for n in range(260_000)]
    table = pa.table({"url": [f"https://a.org/{n}" for n in range(260_000)], "caption": captions})
    pq.write_table(table, tmp_path / "all.parquet")
    rules = TextRuleSettings(language=False)
    written = set()
    for threads in (1, 2, 4):
        card = SourceCard("t", list=str(tmp_path / "all.parquet"), text_rules=rules)
        prepare(card, tmp_path / "list.parquet", threads=threads)
        apply_text_rules(tmp_path / "list.parquet", tmp_path / "kept.parquet", card, processes=1, threads=threads)
        written.add(tuple((tmp_path / f"{name}.parquet").read_bytes() for name in ("list", "kept")))
    assert len(written) == 1


def test_a_rule_in_python_is_one_registered_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is that of docs/extending.md."""
    monkeypatch.setattr(caption_filters, "PYTHON_RULES", dict(caption_filters.PYTHON_RULES))
    exec(code_of("extending.md", "A text rule")[0], {})
    captions = ["a dog on a beach", "A DOG ON A BEACH", "ein Hund liegt am Strand und schläft"]
    table = pa.table({"url": [f"http://x/{n}" for n in range(3)], "caption": captions})
    pq.write_table(table, tmp_path / "list.parquet")
    card = parse_card({"name": "t"}, Path("t.yaml"))
    fragment = apply_text_rules(tmp_path / "list.parquet", tmp_path / "kept.parquet", card, processes=1)
    dropped = {reason: count for reason, count in fragment.dropped.items() if count}
    assert dropped == {"not_english": 1, "shouting": 1}
    assert pq.read_table(tmp_path / "kept.parquet")["caption"].to_pylist() == captions[:1]


@pytest.mark.parametrize("captions", [[], ["x"], ["cat"], ["", "ox"], ["cat", "add to cart"]])
def test_a_caption_of_a_few_letters_is_judged_alone_as_among_others(captions: list[str]) -> None:
    among_others = furniture.odds([*captions, "a dog that runs along a beach"])
    np.testing.assert_allclose(furniture.odds(captions), among_others[:-1])


def test_a_list_of_any_language_loses_english_furniture_alone() -> None:
    captions = ["Une main à plumes", "Et rødt æble", "Une empreinte de patte.", "Ein Hund am Strand", "Add to cart"]
    for language in (False, ["en", "fr", "da", "de"]):
        judged = caption_filters.is_furniture(captions, TextRuleSettings(language=language))
        assert judged == [False, False, False, False, True]
    assert caption_filters.is_furniture([], TextRuleSettings(language=False)) == []
