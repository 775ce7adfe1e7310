"""Make one table of several models, or of loose result files.

filip eval table results/*.json                                  # whichever command wrote them
filip eval table models=[filip.safetensors,hf:OWNER/NAME] data=[sugar_crepe_swap_att,aro_relation] root=DIR
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip import resources
from filip.cli.command import option, run_command
from filip.common.errors import UserError
from filip.common.files import nothing_at
from filip.eval.__main__ import Evaluation, model_name, results_of
from filip.eval.cards import load_card
from filip.eval.measures import as_text, measures
from filip.eval.options import check_sets

FORMS = ("text", "markdown", "csv")


@dataclass
class TableOptions:
    results: list[str] = option([], "result files, or folders of them; also as plain arguments")
    models: list[str] = option([], "models to evaluate as `filip eval model=` does; results that are there are kept")
    data: list[str] = option([], "of models=: folders, tables or cards; empty: all of our cards that are below root")
    root: str = option(".", "folder below which the data sets of cards lie")
    out: str = option("results/eval", "folder for the results of models=, one in it for each model", writes="folder")
    form: str = option("text", "text, markdown or csv", choices=FORMS)
    device: str = option("auto", "torch device; auto = a GPU where there is one")
    trust_remote_code: bool = option(False, "run code that lies in a model's folder (mv: models)")


def main(config: TableOptions) -> None:
    """Print one table of models, or of result files, whichever evaluation wrote them."""
    if not config.results and not config.models:
        raise UserError("give results=, files or folders of results, or models= to evaluate")
    results = [_read(file) for file in files_of(config.results)]
    data = config.data
    if config.models and not data:  # all cards of ours whose data are there
        cards = [load_card(name) for name in resources.names("benchmark")]
        data = list(check_sets(cards, config.root, "quiet")[0])
        if not data:
            raise UserError(
                f"root={config.root} has the data of none of our cards: docs/evaluation.md says how they lie there"
            )
    evaluations = [Evaluation(model=model, data=data, root=config.root) for model in config.models]
    named = Counter(map(model_name, evaluations))
    for one in evaluations:
        name = model_name(one)
        if named[name] > 1:  # of two studies, say, whose models are called filip
            one.run = name = re.sub(r"[^\w.-]+", "_", str(Path(one.model).with_suffix(""))).strip("_")
        one.device, one.trust_remote_code = config.device, config.trust_remote_code
        one.out = f"{config.out}/{name}"
        results += results_of(one)
    rows = [measure for result in results for measure in measures(result)]
    if not rows:
        raise UserError(f"no results of an evaluation in {', '.join([*config.results, *config.models])}")
    print(as_text(rows, config.form))


def files_of(places: Sequence[str]) -> list[Path]:
    """Return result files: files themselves, and all ``.json`` below folders. UserError for a missing path."""
    files: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise UserError(nothing_at(place, "give result files, or folders of them"))
        files += sorted(place.rglob("*.json")) if place.is_dir() else [place]
    return files


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def with_files(arguments: Sequence[str]) -> list[str]:
    """Return ``results=[a.json] b.json form=csv`` as ``results=[a.json,b.json] form=csv``."""
    others = [a for a in arguments if a.startswith("-") or ("=" in a and not a.startswith("results="))]
    files = [a.removeprefix("results=").strip("[]") for a in arguments if a not in others]
    return [*([f"results=[{','.join(filter(None, files))}]"] if files else []), *others]


if __name__ == "__main__":
    run_command(main, TableOptions, argv=with_files(sys.argv[1:]))
