"""Set README.md beside those of five packages that people like: its words, rows of tables, numbers, pictures, "you".

    python -m bench.front_page        # fetches the others from PyPI

Code blocks, HTML tags and the targets of links do not count as words.
"""

import json
import re
import urllib.request
from pathlib import Path

PEERS = ("timm", "open-clip-torch", "sentence-transformers", "pylate", "colpali-engine")


def counts(text: str) -> dict[str, int]:
    rows = re.findall(r"^\|(?![\s:|-]+$).*$", text, re.M)
    pictures = len(re.findall(r"!\[[^\]]*\]\((?!\S*(?:badge|shields))|<img(?![^>]*(?:badge|shields))", text))
    prose = re.sub(r"(?s)```.*?```|<[^>]+>|\]\([^)]*\)|^\|.*?$", " ", text, flags=re.M)
    words = re.findall(r"[^\W_][\w'’.-]*", prose)
    return {
        "words": len(words),
        "table rows": len(rows),
        "numbers": sum(word[0].isdigit() for word in words) + sum(len(re.findall(r"\d[\d.,]*", row)) for row in rows),
        "pictures": pictures,
        "you, per 1,000 words": round(1000 * sum(w.lower() in ("you", "your", "yours") for w in words) / len(words)),
    }


def peer(name: str) -> str:
    with urllib.request.urlopen(f"https://pypi.org/pypi/{name}/json", timeout=60) as answer:
        return json.load(answer)["info"]["description"]


if __name__ == "__main__":
    pages = {"this README": Path("README.md").read_text()} | {name: peer(name) for name in PEERS}
    found = {name: counts(text) for name, text in pages.items()}
    print(f"{'':22}" + "".join(f"{column:>{len(column) + 3}}" for column in found["this README"]))
    for name, row in found.items():
        print(f"{name:22}" + "".join(f"{value:>{len(column) + 3}}" for column, value in row.items()))
