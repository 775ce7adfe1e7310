"""Turn a study, its results and the published numbers into the cells of tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from filip.eval.cards import BenchmarkCard, load_card
from filip.report.results import Results
from filip.report.table import Cell, Column, Row, average, combine
from filip.study import Study

RANKS = ("r1", "r5", "r10")
DIRECTIONS = {"i2t": "image → text", "t2i": "text → image"}


@dataclass(frozen=True)
class Inputs:
    """Everything that a table is built from. cards: the benchmarks' cards by name."""

    study: Study
    results: Results
    published: dict[str, Any]
    cards: dict[str, BenchmarkCard]

    @staticmethod
    def of(study: Study, results: Results, published: dict[str, Any]) -> Inputs:
        """Collect the inputs with the card of every benchmark that the study evaluates. UserError if one is missing."""
        cards = {name: load_card(name) for name in study.all_benchmarks}
        return Inputs(study, results, published, cards)

    def title(self, benchmark: str) -> str:
        """Return a benchmark's name in print."""
        card = self.cards.get(benchmark)
        return card.title if card else benchmark

    def published_block(self, name: str) -> dict[str, Any]:
        """Return a block of the published numbers: ``columns``, then rows by label; no columns if it does not exist."""
        return dict(self.published.get(name) or {"columns": []})

    def published_names(self, protocol: str) -> dict[str, str]:
        """Return the published names of a protocol's benchmarks, by our name; only of those that the paper has.

        Their cards say so (``published``): the file of a card may be called anything.
        """
        names = {name: self.cards[name].published for name in self.study.benchmarks(protocol)}
        return {name: theirs for name, theirs in names.items() if theirs is not None}

    # ---- rows ----------------------------------------------------------------------------------------

    def row(self, run: str, cells: dict[str, Cell], section: str = "", suffix: str = "") -> Row:
        """Return a measured row: a run of this study, or a peer, that is somebody else's model scored by us."""
        training = self.results.training(run) or {}
        kind = "ours" if run in self.study.trained else "peer"
        run_id = self.results.run_id(run) or self.study.peers.get(run, {}).get("model")
        label = self.study.label(run) + tokens_kept(training.get("config") or {}) + suffix
        return Row(label, kind, cells, section, run, run_id, training.get("commit"))

    # ---- cells: each the mean over a run's seeds -----------------------------------------------------

    def task_cell(self, run: str, task: str, protocol: str = "zero_shot") -> Cell:
        """Return the accuracy of a run on a classification benchmark."""
        return combine([self._task(m, task, protocol) for m in self.study.replicas(run, protocol)])

    def _task(self, run: str, task: str, protocol: str) -> Cell:
        found = (self.results.evaluation(run, protocol) or {}).get("benchmarks", {}).get(task)
        if found is None:
            return Cell(reason=self.why_empty(run, protocol, task))
        return Cell(found["value"], found["chance"], found["n"], found.get("ci95"))

    def average_cell(self, run: str, protocol: str = "zero_shot") -> Cell:
        """Return the plain mean over the protocol's classification benchmarks; over seeds, the mean of their means."""
        tasks = self.study.benchmarks(protocol)
        members = self.study.replicas(run, protocol)
        return combine([average([self._task(m, task, protocol) for task in tasks], "task") for m in members])

    def recall_cell(self, run: str, benchmark: str, direction: str, rank: str) -> Cell:
        """Return the recall of a run on a retrieval benchmark."""
        members = self.study.replicas(run, "retrieval")
        return combine([self._recall(m, benchmark, direction, rank) for m in members])

    def _recall(self, run: str, benchmark: str, direction: str, rank: str) -> Cell:
        found = (self.results.evaluation(run, "retrieval") or {}).get("benchmarks", {}).get(benchmark)
        if found is None:
            return Cell(reason=self.why_empty(run, "retrieval", benchmark))
        interval = found.get("ci95", {}).get(direction, {}).get(rank)
        return Cell(found[direction][rank], found["chance"][direction][rank], found["images"], interval)

    def why_empty(self, run: str, protocol: str, benchmark: str) -> str:
        """Return why an evaluation of a run has no result for a benchmark."""
        found = self.results.evaluation(run, protocol)
        if found is None:
            return self.results.why("eval", run, f"{protocol}.json")
        if why := found.get("skipped", {}).get(benchmark):
            return f"not run: {why}"
        return f"not run: {benchmark} is not in {self.results.folder / 'eval' / run / f'{protocol}.json'}"


def tokens_kept(config: dict[str, Any]) -> str:
    """Return what a row's label says of a token-wise training that keeps a part of the tokens; "" if it keeps all."""
    ratio = config.get("token_keep_ratio", 1.0)
    if ratio == 1.0 or (config.get("model") or {}).get("interaction") == "pooled":
        return ""
    return f", {100 * ratio:g} % of tokens"


def task_table(inputs: Inputs, protocol: str) -> tuple[list[Column], list[Row]]:
    """Build columns and our rows of a table over classification benchmarks, with the average of several."""
    tasks = inputs.study.benchmarks(protocol)
    names = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
    columns = [
        Column(task, inputs.title(task), names[inputs.cards[task].metric], outcomes=task_outcomes(inputs, [task]))
        for task in tasks
    ]
    if len(columns) > 1:
        columns.append(Column("average", "average", "mean", outcomes=task_outcomes(inputs, tasks)))
    rows = []
    for run in inputs.study.rows(protocol):
        cells = {task: inputs.task_cell(run, task, protocol) for task in tasks}
        rows.append(inputs.row(run, {**cells, "average": inputs.average_cell(run, protocol)}))
    return columns, rows


def task_outcomes(inputs: Inputs, tasks: list[str]) -> list[str]:
    """Return the outcomes whose mean is the accuracy on a task or several tasks; none if it is not such a mean."""
    metrics = [inputs.cards[task].metric for task in tasks]
    if "mean_per_class" in metrics:
        return []
    return [f"{task}/{metric}" for task, metric in zip(tasks, metrics, strict=True)]


def parts_table(
    inputs: Inputs,
    protocol: str,
    parts: dict[str, str],
    cell_of: Callable[[dict[str, Any], str], Cell],
    outcome: dict[str, str],
    runs: list[str] | None = None,
    fits: Callable[[str, str], bool] | None = None,
) -> tuple[list[Column], list[Row]]:
    """Return columns and our rows of a table with several figures per benchmark.

    parts: {key of a figure: title of its column}. cell_of: that figure of a benchmark's result, as a cell. outcome:
    {key of a figure: what follows the benchmark's name in its outcomes}; without one it is not compared in pairs.
    runs: the rows; None: those of the table that has the protocol's name. fits: whether a benchmark has a figure, from
    both their keys; None: each has all.
    """

    def cell(run: str, benchmark: str, part: str) -> Cell:
        found = (inputs.results.evaluation(run, protocol) or {}).get("benchmarks", {}).get(benchmark)
        return Cell(reason=inputs.why_empty(run, protocol, benchmark)) if found is None else cell_of(found, part)

    figures = [
        (name, part) for name in inputs.study.benchmarks(protocol) for part in parts if fits is None or fits(name, part)
    ]
    columns = [
        Column(
            f"{name}_{part}",
            parts[part],
            inputs.title(name),
            outcomes=[f"{name}{outcome[part]}"] if part in outcome else [],
        )
        for name, part in figures
    ]
    rows = []
    for run in inputs.study.rows(protocol) if runs is None else runs:
        members = inputs.study.replicas(run, protocol)
        cells = {f"{name}_{part}": combine([cell(m, name, part) for m in members]) for name, part in figures}
        rows.append(inputs.row(run, cells))
    return columns, rows


def recall_columns(inputs: Inputs, benchmarks: list[str], ranks: tuple[str, ...]) -> list[Column]:
    """Return a column for each rank of each direction of each retrieval benchmark."""
    return [
        Column(
            f"{name}_{direction}_{rank}",
            f"R@{rank[1:]}",
            f"{inputs.title(name)}, {meaning}",
            outcomes=[f"{name}.{direction}/{rank}"],
        )
        for name in benchmarks
        for direction, meaning in DIRECTIONS.items()
        for rank in ranks
    ]
