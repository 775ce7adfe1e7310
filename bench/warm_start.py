"""From a pooled model to a token-wise one: the table of docs/models.md.

    python -m bench.warm_start                    # after `make demo`; about a minute a row and seed on one core
    python -m bench.warm_start search=true        # the rates and recipes that were tried, one seed each

The demo's CLIP goes on for a tenth of its steps, as CLIP or token-wise; beside it FILIP from scratch, from the demo.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from bench.demo_training import Study, recall_of, run
from filip.command import option, run_command
from filip.eval.encoders import FilipEncoder
from filip.eval.scorer import scorer_for
from filip.models import load_model
from filip.progress import say

RECIPES = {
    "as it is": [],
    "projections first": ["warm_start.projection_steps=30"],
    "slower below": ["warm_start.layer_decay=0.7"],
    "pooled term fades": ["loss.pooled=linear from 1 to 0 in steps 0 to 100"],
}
RATES = ("5e-4", "1e-3", "2e-3", "4e-3")


@dataclass
class WarmStart(Study):
    steps: int = option(150, "steps of each continuation: a tenth of the demo's training")
    clip: str = option("results/demo/models/clip.safetensors", "the pooled model to start from")
    filip: str = option("results/demo/models/filip.safetensors", "the token-wise model from scratch")
    search: bool = option(False, "try all rates and recipes with one seed, instead of the table")
    rate: str = option("2e-3", "base learning rate of token-wise continuations")
    clip_rate: str = option("1e-3", "base learning rate of the pooled continuation")
    recipe: list[str] = option([], "further settings of token-wise continuations")
    seeds: int = option(3, "trainings of each row")


def main(study: WarmStart) -> None:
    """Print recall of each way to go on."""
    print("| | further steps | i2t R@1 / R@10 | t2i R@1 / R@10 |\n| --- | ---: | --- | --- |", flush=True)
    (try_all if study.search else table)(study)


def try_all(study: WarmStart) -> None:
    for rate in RATES:
        show(f"CLIP, {rate}", study.steps, [continued(study, 0, rate, [])])
        for name, settings in RECIPES.items():
            settings = ["warm_start.interaction=token_wise", *settings]
            show(f"token-wise, {name}, {rate}", study.steps, [continued(study, 0, rate, settings)])


def table(study: WarmStart) -> None:
    show("CLIP", 0, [recall_of_file(study, study.clip)])
    show("the same scored token-wise", 0, [recall_of_file(study, study.clip, "token_wise")])
    clips = [continued(study, seed, study.clip_rate, []) for seed in range(study.seeds)]
    show("CLIP goes on", study.steps, clips)
    token_wise = ["warm_start.interaction=token_wise", *study.recipe]
    for steps in (study.steps // 10, study.steps // 3, study.steps, 3 * study.steps):
        shorter = replace(study, steps=steps)
        show(
            "goes on token-wise",
            steps,
            [continued(shorter, s, study.rate, token_wise) for s in range(study.seeds)],
        )
    show("FILIP from scratch", 0, [recall_of_file(study, study.filip)])


def continued(study: WarmStart, seed: int, rate: str, settings: list[str]) -> dict[str, float]:
    """Recall after going on from CLIP."""
    say(f"seed {seed}, rate {rate}, {settings}")
    start = [
        f"init_from={study.clip}",
        f"seed={seed}",
        f"optimizer.base_lr={rate}",
        "data.auto_augment=false",
    ]
    return run(study, [*start, *settings]).recall


def recall_of_file(study: WarmStart, path: str, interaction: str | None = None) -> dict[str, float]:
    model = load_model(path).eval()
    model.set_interaction(interaction or model.config.interaction)
    return recall_of(scorer_for(FilipEncoder(model, path)), study)


def show(name: str, steps: int, found: list[dict[str, float]]) -> None:
    """A row: means over trainings, and in brackets the lowest and highest R@1 where there are several."""
    cells = []
    for way in ("i2t", "t2i"):
        first, tenth = ([recall[f"{way} {r}"] for recall in found] for r in ("r1", "r10"))
        spread = f" ({min(first):.1f} to {max(first):.1f})" if len(first) > 1 else ""
        cells.append(f"{statistics.mean(first):.1f}{spread} / {statistics.mean(tenth):.1f}")
    print(f"| {name} | {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_command(main, WarmStart)
