"""Turn a pooled model into a token-wise one: the table of docs/models.md.

    python -m bench.studies.warm_start                    # after `make run STUDY=demo_warm SEEDS=3`; nine minutes
    python -m bench.studies.warm_start search=true        # the rates and recipes that were tried, one seed each

The demo's CLIP of each seed goes on for a tenth of its steps, as CLIP or token-wise; next to it the FILIP of that seed,
from scratch. What a row cost in all is counted in processor time, pre-training included: its steps times what a step
of that model takes here.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from bench.demo_training import DemoTraining, recall_of, run
from filip.command import option, run_command
from filip.errors import UserError
from filip.eval.encoders import FilipEncoder
from filip.eval.scorer import scorer_for
from filip.models import load_model
from filip.progress import say
from filip.study import load_study

RECIPES = {
    "as it is": [],
    "projections first": ["warm_start.projection_steps=30"],
    "slower below": ["warm_start.layer_decay=0.7"],
    "pooled term fades": ["loss.pooled=linear from 1 to 0 in steps 0 to 100"],
}
TOKEN_WISE = "warm_start.interaction=token_wise"
RATES = ("5e-4", "1e-3", "2e-3", "4e-3")


@dataclass
class WarmStart(DemoTraining):
    steps: int = option(150, "steps of each continuation: a tenth of the demo's training")
    results: str = option("results/demo_warm", "results of the demo from scratch, with models of as many seeds")
    clip: str = option("clip_patches", "run of the CLIP to go on from")
    filip: str = option("filip_patches", "run of the FILIP to compare with")
    search: bool = option(False, "try all rates and recipes with one seed, instead of the table")
    rate: str = option("2e-3", "base learning rate of token-wise continuations")
    clip_rate: str = option("1e-3", "base learning rate of the pooled continuation")
    recipe: list[str] = option([], "further settings of token-wise continuations")
    seeds: int = option(3, "how many of the demo's seeds; each goes on from its own CLIP")


@dataclass(frozen=True)
class Found:
    """The recall of one model in percent, the steps that it saw of either kind, and seconds a step if trained here."""

    recall: dict[str, float]
    pooled: int
    token_wise: int = 0
    seconds_per_step: float = 0.0


def main(study: WarmStart) -> None:
    """Print the recall of each way to continue."""
    (try_all if study.search else table)(study)


def try_all(study: WarmStart) -> None:
    head("further steps")
    clip = weights(study, study.clip, 1)[0]
    for rate in RATES:
        show(f"CLIP, {rate} | {study.steps}", [continued(study, clip, 0, rate, [])])
        for name, settings in RECIPES.items():
            found = continued(study, clip, 0, rate, [TOKEN_WISE, *settings])
            show(f"token-wise, {name}, {rate} | {study.steps}", [found])


def table(study: WarmStart) -> None:
    """Print each row over all seeds. The pooled continuation and the longest token-wise one tell what a step costs."""
    clips, filips = (weights(study, run, study.seeds) for run in (study.clip, study.filip))
    before = pretraining_steps(study)
    as_they_are = [Found(recall_of_file(study, clip), before) for clip in clips]
    token_wise = [Found(recall_of_file(study, clip, "token_wise"), before) for clip in clips]
    pooled = [continued(study, clip, seed, study.clip_rate, []) for seed, clip in enumerate(clips)]
    rows = [("CLIP", as_they_are), ("the same scored token-wise", token_wise), ("CLIP goes on", pooled)]
    for steps in (study.steps // 10, study.steps // 3, study.steps, 3 * study.steps):
        shorter, settings = replace(study, steps=steps), [TOKEN_WISE, *study.recipe]
        token_wise = [continued(shorter, clip, s, study.rate, settings) for s, clip in enumerate(clips)]
        rows.append(("goes on token-wise", token_wise))
    rows.append(("FILIP from scratch", [Found(recall_of_file(study, filip), 0, before) for filip in filips]))
    pooled_step, token_step = (statistics.mean(one.seconds_per_step for one in found) for found in (pooled, token_wise))
    say(f"a step takes {pooled_step:.3f} s pooled and {token_step:.3f} s token-wise")
    head("steps pooled | token-wise | minutes")
    for name, found in rows:
        minutes = (found[0].pooled * pooled_step + found[0].token_wise * token_step) / 60
        show(f"{name} | {found[0].pooled:,} | {found[0].token_wise:,} | {minutes:.1f}", found)


def weights(study: WarmStart, run: str, seeds: int) -> list[str]:
    """Return the files of a run's first seeds. UserError if the demo was run with fewer."""
    names = load_study(None, study.results).replicas(run)
    if len(names) < seeds:
        raise UserError(
            f"{study.results} has {len(names)} of {seeds} seeds of {run}: SEEDS={seeds} trains the others, "
            f"or take seeds={len(names)}"
        )
    return [str(Path(study.results) / f"models/{name}.safetensors") for name in names[:seeds]]


def pretraining_steps(study: WarmStart) -> int:
    steps = load_study(None, study.results).resolved(study.clip).max_steps
    assert steps is not None
    return steps


def continued(study: WarmStart, clip: str, seed: int, rate: str, settings: list[str]) -> Found:
    """Return the recall after going on from ``clip``."""
    say(f"{clip}, {study.steps} steps, rate {rate}, {settings}")
    start = [f"init_from={clip}", f"seed={seed}", f"optimizer.base_lr={rate}", "data.auto_augment=0"]
    outcome = run(study, [*start, *settings])
    seconds = outcome.seconds / study.steps
    say(f"  {seconds:.3f} s a step, recall {outcome.recall}")  # the table comes last
    before = pretraining_steps(study)
    steps = (before, study.steps) if TOKEN_WISE in settings else (before + study.steps, 0)
    return Found(outcome.recall, *steps, seconds)


def recall_of_file(study: WarmStart, path: str, interaction: str | None = None) -> dict[str, float]:
    model = load_model(path).eval()
    model.set_interaction(interaction or model.config.interaction)
    return recall_of(scorer_for(FilipEncoder(model, path)), study)


def head(columns: str) -> None:
    print(f"| | {columns} | i2t R@1 / R@10 | t2i R@1 / R@10 |")
    print(f"| --- | {' | '.join('---:' for _ in columns.split('|'))} | --- | --- |", flush=True)


def show(cells: str, found: list[Found]) -> None:
    """Print a row: means over seeds, and in brackets the lowest and highest R@1 where there are several."""
    shown = []
    for way in ("i2t", "t2i"):
        first, tenth = ([one.recall[f"{way} {r}"] for one in found] for r in ("r1", "r10"))
        spread = f" ({min(first):.1f} to {max(first):.1f})" if len(first) > 1 else ""
        shown.append(f"{statistics.mean(first):.1f}{spread} / {statistics.mean(tenth):.1f}")
    print(f"| {cells} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    run_command(main, WarmStart)
