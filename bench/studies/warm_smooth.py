"""Make a CLIP token-wise with the smooth maximum, above the wheel's stem, against training from scratch at equal
processor time: a table of docs/models.md.

    python -m bench.studies.warm_smooth search=true   # after `make demo`: the rate, on scenes that no table shows
    python -m bench.studies.warm_smooth

Three CLIPs with the demo's towers, pooled by the mean, are trained as long as the demo's, one a seed. Each goes on
token-wise; the same seeds train from scratch, for as many steps and for as many seconds as CLIP and its continuation
take together.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from bench.demo_training import STEM_MAPS, DemoTraining, Outcome, recall_of, run
from bench.studies.warm_start import Found, head, show
from filip.command import option, run_command
from filip.eval.encoders import FilipEncoder
from filip.eval.scorer import scorer_for
from filip.models import load_model
from filip.progress import say

CLIP = ["model.interaction=pooled", "model.pooling=mean", "model.init_temperature=0.03"]
SMOOTH = ["token_maximum=smooth", "token_temperature=0.05"]
SCRATCH = ["model.interaction=token_wise", "model.init_temperature=0.03", *SMOOTH, "optimizer.base_lr=4e-3"]


@dataclass
class WarmSmooth(DemoTraining):
    card: str = option("eval/demo_scenes_new.yaml", "retrieval card that the table reports")
    experiment: str = option("demo_small", "what every row trains")
    steps: int = option(300, "steps of the CLIPs: the demo's")
    lengths: list[int] = option([50, 150], "steps token-wise")
    rate: str = option("4e-3", "base learning rate of the continuations")
    search: bool = option(False, "try rates on demo_scenes_search with another seed, instead of the table")
    seeds: int = option(3, "trainings of each row")


def main(study: WarmSmooth) -> None:
    """Print the recall of each way, or of each rate."""
    with tempfile.TemporaryDirectory() as folder:
        (rates if study.search else table)(study, Path(folder))


def rates(study: WarmSmooth, folder: Path) -> None:
    """Print recall on the selection scenes for each rate, with a seed that the table does not use."""
    study, seed = replace(study, card="eval/demo_scenes_search.yaml"), study.seeds
    clip, path = trained_clip(study, folder, seed)
    head("steps")
    show(f"CLIP | {study.steps}", [Found(clip.recall, 0)])
    for rate in ("1e-3", "2e-3", "4e-3"):
        steps = study.lengths[-1]
        show(f"goes on token-wise, {rate} | {steps}", [Found(goes_on(study, path, seed, steps, rate).recall, 0)])


def table(study: WarmSmooth, folder: Path) -> None:
    """Print each row over all seeds, with the seconds of one core that it took, those of its CLIP included and not."""
    seeds = range(study.seeds)
    clips = [trained_clip(study, folder, seed) for seed in seeds]
    rows = {f"CLIP, {study.steps} steps": [one for one, _ in clips]}
    rows["the same scored token-wise"] = [
        replace(one, seconds=0, recall=token_wise(path, study)) for one, path in clips
    ]
    for steps in study.lengths:
        rows[f"CLIP goes on token-wise, {steps} steps"] = [
            goes_on(study, path, s, steps, study.rate) for s, (_, path) in enumerate(clips)
        ]
        rows[f"from scratch, {steps} steps"] = [from_scratch(study, s, steps) for s in seeds]
    a_step = mean(rows[f"from scratch, {study.lengths[-1]} steps"]) / study.lengths[-1]
    both = mean(rows[f"CLIP, {study.steps} steps"]) + mean(rows[f"CLIP goes on token-wise, {study.lengths[-1]} steps"])
    as_long = round(both / a_step)
    rows[f"from scratch, {as_long} steps"] = [from_scratch(study, s, as_long) for s in seeds]
    head("seconds | with its CLIP")
    for name, outcomes in rows.items():
        before = mean(rows[f"CLIP, {study.steps} steps"]) if "goes on" in name or "same" in name else 0
        own = mean(outcomes)
        show(f"{name} | {own:.0f} | {own + before:.0f}", [Found(one.recall, 0) for one in outcomes])


def mean(outcomes: list[Outcome]) -> float:
    return statistics.mean(one.seconds for one in outcomes)


def trained_clip(study: WarmSmooth, folder: Path, seed: int) -> tuple[Outcome, Path]:
    path = folder / f"clip{seed}.safetensors"
    found = run(warmed(study, study.steps), [*CLIP, "optimizer.base_lr=4e-3", f"seed={seed}"], save=path)
    say(f"CLIP, seed {seed}: {found.seconds:.0f} s, {found.recall}")
    return found, path


def goes_on(study: WarmSmooth, clip: Path, seed: int, steps: int, rate: str) -> Outcome:
    start = [f"init_from={clip}", "warm_start.interaction=token_wise", *SMOOTH]
    found = run(warmed(study, steps), [*start, f"optimizer.base_lr={rate}", f"seed={seed}"])
    say(f"goes on, {steps} steps, {rate}, seed {seed}: {found.seconds:.0f} s, {found.recall}")
    return found


def from_scratch(study: WarmSmooth, seed: int, steps: int) -> Outcome:
    found = run(warmed(study, steps), [*SCRATCH, f"seed={seed}"])
    say(f"from scratch, {steps} steps, seed {seed}: {found.seconds:.0f} s, {found.recall}")
    return found


def warmed(study: WarmSmooth, steps: int) -> WarmSmooth:
    """Return the study with as many steps, a third of them for the warm-up, as in the demo."""
    return replace(study, steps=steps, warmup_steps=steps // 3)


def token_wise(path: Path, study: WarmSmooth) -> dict[str, float]:
    model = load_model(str(path)).eval()
    model.set_interaction("token_wise")
    if model.image.stem is not None:
        model.image.stem.keep_maps(STEM_MAPS)
    return recall_of(scorer_for(FilipEncoder(model, str(path))), study)


if __name__ == "__main__":
    run_command(main, WarmSmooth)
