"""Look for everything that a study will need, before its first job: a missing model shows after a week of download.

filip study check base                       # workflow/config/base.yaml; a path works too
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.data.cards import SourceCard, load_source, overridden
from filip.data.engines import engine_class
from filip.eval.cards import load_card
from filip.study.config_checks import check_evaluation_options
from filip.study.study import Study, load_study

# Kinds of needs, and the rules of the workflow that have them.
KINDS = {
    "trainings": (),  # the workflow composes them itself
    "lists": ("url_list", "ingest"),
    "download": ("download",),
    "engines": ("translate", "translate_part"),
    "benchmarks": ("evaluate",),
    "GPUs": ("pretrain", "fine_tune", "efficiency"),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A thing that is missing. stops: a job would fail for it; otherwise cells stay empty."""

    kind: str
    text: str
    stops: bool = True


@dataclass
class Check:
    study: str = option(MISSING, "a study of workflow/config by its name, or the path of its YAML")


def main(config: Check) -> None:
    """Print the needs of a study that this machine lacks: lists, engines, benchmarks, GPUs."""
    named = Path("workflow/config", f"{config.study}.yaml")
    study = load_study(named if named.is_file() else config.study)
    check_evaluation_options(study.config)
    results = findings(study)
    print("\n".join(page(study, results)))
    if any(finding.stops for finding in results):
        sys.exit(2)


def page(study: Study, results: list[Finding]) -> list[str]:
    """Return the findings as lines, the kinds in their order."""
    lines = [f"study {study.name}: {study.title}"]
    for kind in KINDS:
        of_kind = [finding for finding in results if finding.kind == kind]
        lines += [f"{kind:<11} all here"] if not of_kind else []
        for number, finding in enumerate(of_kind):
            head = f"{'' if number else kind:<11} {'! ' if finding.stops else '- '}"
            lines += textwrap.wrap(
                finding.text, 120, initial_indent=head, subsequent_indent=" " * 14, break_on_hyphens=False
            )
    stopping = sum(finding.stops for finding in results)
    note = f"{stopping} (!) would stop the study; look again after each, the others (-) would not"
    return [*lines, note if results else "nothing is missing"]


def require(study: Study, rules: Collection[str]) -> list[str]:
    """Check what these rules of the workflow need; return sentences about what stops none of them.

    Raises UserError with everything that would stop one.
    """
    kinds = [kind for kind, of in KINDS.items() if set(of) & set(rules)]
    results = findings(study, kinds)
    if stopping := [finding for finding in results if finding.stops]:
        missing = "\n".join(f"  {finding.kind}: {finding.text}" for finding in stopping)
        raise UserError(f"the study {study.name} lacks what its jobs need:\n{missing}")
    return [finding.text for finding in results]


def findings(study: Study, kinds: Collection[str] = tuple(KINDS)) -> list[Finding]:
    """Return everything that is missing of these kinds."""
    cards = {source: load_source(source) for source in study.sources}
    open_ = {
        source: card
        for source, card in cards.items()
        if not Path(study.data_dir, source, "manifest.json").exists()  # else its data are complete
    }
    looks = {
        "trainings": lambda: _trainings(study),
        "lists": lambda: _lists(study, open_),
        "download": lambda: _download(study, open_),
        "engines": lambda: _engines(open_),
        "benchmarks": lambda: _benchmarks(study, cards),
        "GPUs": lambda: _gpus(study),
    }
    return [finding for kind in kinds for finding in looks[kind]()]


def _trainings(study: Study) -> Iterator[Finding]:
    for name in (*study.trained, *study.efficiency):
        try:
            study.resolved(name)
        except UserError as error:
            yield Finding("trainings", f"{name}: {error}")


def _lists(study: Study, cards: dict[str, SourceCard]) -> Iterator[Finding]:
    from filip.data.lists.reading import list_files  # reads them with DuckDB

    named = "In a study a list is named by the source's card: `list: PATH` in data/NAME.yaml."
    for source, card in cards.items():
        if card.built_by or Path(study.data_dir, source, "list.parquet").exists():
            continue
        try:
            if card.images is None:
                list_files(card)
            elif not Path(card.images).exists():
                how = f". {' '.join(card.obtain.split())}" if card.obtain else ""
                yield Finding("lists", f"{source}: no images at {card.images}, as {card.path} says{how}")
        except UserError as error:
            yield Finding("lists", f"{source}: {str(error).rstrip('.')}. {named}")
            named = ""


def _download(study: Study, cards: dict[str, SourceCard]) -> Iterator[Finding]:
    by_it: list[str] = []
    for source, card in cards.items():
        card = overridden(card, "download", study.config.get("download", {}))
        if card.images is not None or card.download.engine != "img2dataset":
            continue
        from filip.data.by_img2dataset import NOT_HEEDED, check_card, program  # which imports OpenCV

        try:
            check_card(card)
            program(card)
        except UserError as error:
            yield Finding("download", f"{source}: {error}")
            continue
        by_it.append(source)
    if by_it:
        yield Finding("download", f"{', '.join(by_it)}: {NOT_HEEDED}", stops=False)


def _engines(cards: dict[str, SourceCard]) -> Iterator[Finding]:
    engines: dict[tuple[str, str, str | None], list[str]] = {}
    for source, card in cards.items():
        if (settings := card.back_translation) and settings.engine != "none":
            for pivot in settings.pivots:
                engines.setdefault((settings.engine, pivot, settings.models), []).append(source)
    for (engine, pivot, models), sources in engines.items():
        if absent := engine_class(engine).missing(pivot, models):
            yield Finding("engines", f"{', '.join(sources)}, captions through '{pivot}': {absent}")


def _benchmarks(study: Study, cards: dict[str, SourceCard]) -> Iterator[Finding]:
    if any(card.built_by for card in cards.values()):
        return  # they are made with the corpus
    root = Path(study.evaluation["root"])
    places = {name: load_card(name).path for name in study.all_benchmarks}
    made = tuple(f"{study.data_dir}/{source}/" for source in study.sources)  # by the study, before its evaluations
    absent = [
        f"{name} ({place})"
        for name, place in places.items()
        if not (root / place).exists() and not str(root / place).startswith(made)
    ]
    if absent:
        per_card = study.evaluation.get("per_card", False)
        effect = "Their cells stay empty" if per_card else "Their evaluations will fail"
        yield Finding(
            "benchmarks",
            f"{len(absent)} of {len(places)} are not below {root}: {', '.join(absent)}. {effect}; docs/evaluation.md "
            "says how to obtain each",
            stops=not per_card,
        )


def _gpus(study: Study) -> Iterator[Finding]:
    import torch

    from filip.common.device import why_no_kernels

    launches = [study.launch_settings(name) for name in (*study.trained, *study.efficiency)]
    launches = [launch for launch in launches if launch.get("accelerator") != "cpu"]
    if not launches:
        return
    on_slurm = [launch for launch in launches if launch["launcher"] == "srun"]
    ranks = max((launch["ranks_per_node"] for launch in launches if launch["launcher"] != "srun"), default=0)
    if torch.version.cuda is None and torch.version.hip is None:
        advice = "install PyTorch's build for your GPUs (docs/installation.md), or set launch.accelerator: cpu"
        has_gpus = bool(on_slurm) or shutil.which("nvidia-smi") is not None
        yield Finding("GPUs", f"this PyTorch, {torch.__version__}, computes on CPUs only; {advice}", stops=has_gpus)
    elif 0 < (count := torch.cuda.device_count()) < ranks:
        yield Finding("GPUs", f"launch.ranks_per_node={ranks}, and this machine has {count} GPUs")
    elif not count and ranks:
        yield Finding("GPUs", f"launch.ranks_per_node={ranks}, and this machine has no GPU", stops=False)
    for number in range(min(ranks, torch.cuda.device_count())):
        if why := why_no_kernels(torch.device("cuda", number)):
            yield Finding("GPUs", why)
    if on_slurm and shutil.which("sbatch") is None:
        yield Finding(
            "GPUs", "launch.launcher is srun, and there is no sbatch here: run it on a login node of a cluster"
        )


if __name__ == "__main__":
    given = [f"study={word}" if "=" not in word and word[:1] != "-" else word for word in sys.argv[1:]]
    run_command(main, Check, argv=given)
