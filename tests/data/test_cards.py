from pathlib import Path

import pytest

from filip.common.errors import UserError
from filip.data.cards import load_source, parse_card
from filip.resources import shipped


@pytest.mark.parametrize("path", sorted(shipped("data").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_card_in_the_repository_loads(path: Path) -> None:
    card = load_source(path)
    assert card.name == path.stem
    assert card.title and card.license and card.homepage and card.obtain, "a card must say what it is"


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"colour": 1}, "colour"),
        ({"text_rules": {"lang": True}}, "text_rules"),
        ({"download": {"timeout": "soon"}}, "download.timeout"),
        ({"download": {"threads": 0}}, "download.threads"),
        (
            {"image_root": "https://a.org/${oc.env:HOME}/"},
            r"image_root=https://a\.org/\$\{oc\.env:HOME\}/: \$\{…\} is not resolved",
        ),
        ({"format": "xls"}, "format"),
        ({"subset": "x.tsv"}, "subset_on"),
        ({"list": [1]}, "list"),
    ],
)
def test_bad_card_is_refused_with_the_name_of_the_key(raw: dict, key: str) -> None:
    with pytest.raises(UserError, match=rf"mine\.yaml: .*\b{key}\b"):
        parse_card(raw, Path("data/mine.yaml"))


def test_card_by_name_by_path_and_missing(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("title: Mine\nback_translation: null\ntext_rules: {max_repeats: 3}\n")
    card = load_source(mine)
    assert (card.name, card.text_rules.max_repeats, card.back_translation) == ("mine", 3, None)
    assert card.text_rules.language and card.image_rules.min_side == 200, "the paper's rules are the default"
    assert Path(str(load_source("demo").path)).name == "demo.yaml"
    mine.write_text("title: [unclosed\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_source(mine)
    mine.write_text("a: &a [x, x]\nb: &b [*a, *a]\ntitle: [*b, *b]\n")  # each further line doubles what it holds
    with pytest.raises(UserError, match=r"repeats a part by \*NAME"):
        load_source(mine)
    mine.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="maps keys"):
        load_source(mine)
