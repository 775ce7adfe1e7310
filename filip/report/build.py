"""The paper's tables from a study's results: our rows, other models measured here, and the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from filip import resources
from filip.eval.cards import BenchmarkCard, load_card
from filip.report.efficiency import efficiency_table
from filip.report.notes import RANKS, WAYS, first_against_last, intervals, warnings
from filip.report.study import Results, Study
from filip.report.table import Cell, Column, Row, Table, average, combine, published_cell

__all__ = ["Builder", "build_tables", "load_published"]

TRANSFERRED = "zero-shot after fine-tuning elsewhere (*)"


def build_tables(
    study: Study, results: Results, published: dict[str, Any], cards_dir: Path
) -> dict[str, Table]:
    """All tables that the study has rows for, by name."""
    cards = {
        name: load_card(cards_dir / f"{name}.yaml")
        for kind in ("zero_shot", "retrieval", "alignment", "linear_probe")
        for name in study.benchmarks(kind)
    }
    builder = Builder(study, results, published, cards)
    tables = {}
    if study.rows("zero_shot"):
        tables["zero_shot"] = builder.zero_shot()
    if study.rows("linear_probe"):
        tables["linear_probe"] = builder.linear_probe()
    if study.rows("retrieval"):
        tables["retrieval"] = builder.retrieval()
    if study.rows("component_ablation"):
        tables["component_ablation"] = builder.component_ablation()
    if study.rows("alignment"):
        tables["alignment"] = builder.alignment()
    if study.efficiency:
        tables["efficiency_ablation"] = efficiency_table(study, results, published, builder)
    for table in tables.values():
        table.notes += intervals(table)
    return tables


def load_published(path: str | Path) -> dict[str, Any]:
    """``eval/published.yaml``: the paper's numbers, in percent."""
    return yaml.safe_load(resources.find("published", path).read_text(encoding="utf-8"))


class Builder:
    def __init__(
        self, study: Study, results: Results, published: dict[str, Any], cards: dict[str, BenchmarkCard]
    ):
        self.study, self.results, self.published, self.cards = study, results, published, cards
        self.tasks = study.benchmarks("zero_shot")
        self.probed = study.benchmarks("linear_probe") or self.tasks
        self.sets = study.benchmarks("retrieval")

    # ---- rows and cells ------------------------------------------------------------------------------

    def row(self, run: str, cells: dict[str, Cell], section: str = "", label: str | None = None) -> Row:
        training = self.results.training(run) or {}
        # A run that this study does not train is somebody else's model, scored by us.
        kind = "ours" if run in self.study.trained else "peer"
        run_id = self.results.run_id(run) or (self.study.peers.get(run) or {}).get("model")
        return Row(label or self.study.label(run), kind, cells, section, run, run_id, training.get("commit"))

    def task_cell(self, run: str, task: str, protocol: str = "zero_shot") -> Cell:
        """Accuracy of a run on a classification benchmark, over its replicas."""
        return combine([self._task_cell(member, task, protocol) for member in self.study.replicas(run)])

    def _task_cell(self, run: str, task: str, protocol: str) -> Cell:
        found = (self.results.evaluation(run, protocol) or {}).get("tasks", {}).get(task)
        if found is None:
            return Cell(reason=self._why(run, protocol, task))
        return Cell(found["value"], found["chance"], found["n"], found.get("ci95"))

    def recall_cell(self, run: str, benchmark: str, way: str, rank: str) -> Cell:
        """Recall of a run on a retrieval benchmark, over its replicas."""
        return combine([self._recall_cell(m, benchmark, way, rank) for m in self.study.replicas(run)])

    def _recall_cell(self, run: str, benchmark: str, way: str, rank: str) -> Cell:
        found = (self.results.evaluation(run, "retrieval") or {}).get("benchmarks", {}).get(benchmark)
        if found is None:
            return Cell(reason=self._why(run, "retrieval", benchmark))
        interval = found.get("ci95", {}).get(way, {}).get(rank)
        return Cell(found[way][rank], found["chance"][way][rank], found["images"], interval)

    def _why(self, run: str, protocol: str, benchmark: str) -> str:
        if self.results.evaluation(run, protocol) is None:
            return self.results.why("eval", run, f"{protocol}.json")
        return f"not run: {benchmark} is not in {self.results.folder / 'eval' / run / f'{protocol}.json'}"

    def tasks_of(self, protocol: str) -> list[str]:
        return self.probed if protocol == "linear_probe" else self.tasks

    def average_cell(self, run: str, protocol: str = "zero_shot") -> Cell:
        """Plain mean over the study's classification benchmarks; over replicas, the mean of their means."""
        return combine(
            [
                average([self._task_cell(member, task, protocol) for task in self.tasks_of(protocol)], "task")
                for member in self.study.replicas(run)
            ]
        )

    def title(self, benchmark: str) -> str:
        card = self.cards.get(benchmark)
        return card.title if card else benchmark

    # ---- tables --------------------------------------------------------------------------------------

    def task_rows(self, protocol: str) -> tuple[list[Column], list[Row]]:
        """Columns and our rows of a table over the classification benchmarks."""
        tasks = self.tasks_of(protocol)
        columns = [Column(task, self.title(task), _metric(self.cards[task])) for task in tasks]
        if len(columns) > 1:
            columns.append(Column("average", "average", "mean"))
        rows = []
        for run in self.study.rows(protocol):
            cells = {task: self.task_cell(run, task, protocol) for task in tasks}
            rows.append(self.row(run, {**cells, "average": self.average_cell(run, protocol)}))
        return columns, rows

    def linear_probe(self) -> Table:
        columns, rows = self.task_rows("linear_probe")
        notes = ["Logistic regression on the mean patch token of the frozen image encoder."]
        entries = [
            self.results.evaluation(run, "linear_probe") or {} for run in self.study.rows("linear_probe")
        ]
        for task in self.probed:
            said = {e["tasks"][task]["protocol"] for e in entries if task in e.get("tasks", {})}
            notes += [f"{self.title(task)}: {protocol}." for protocol in sorted(said)]
        return Table("linear_probe", "Linear probe (accuracy, %)", columns, rows, notes)

    def zero_shot(self) -> Table:
        columns, rows = self.task_rows("zero_shot")
        block = self.published.get("zero_shot_classification") or {"columns": []}
        shared = set(block["columns"]) & set(self.tasks)
        for label, entry in block.items() if shared else ():
            if label == "columns":
                continue
            numbers = dict(zip(block["columns"], entry["values"], strict=True))
            whole = set(self.tasks) == set(block["columns"])
            cells = {task: published_cell(numbers.get(task)) for task in self.tasks}
            cells["average"] = (
                published_cell(entry["average"]) if whole else Cell(reason="published over other benchmarks")
            )
            rows.append(Row(label, "paper", cells, "published"))
        notes = (
            [] if shared else ["None of these benchmarks is in the paper, so no published row stands here."]
        )
        notes += warnings(self.study, self.results, "zero_shot", "tasks", self.title)
        return Table("zero_shot", "Zero-shot classification (accuracy, %)", columns, rows, notes)

    def retrieval(self) -> Table:
        columns = [
            Column(f"{name}_{way}_{rank}", f"R@{rank[1:]}", f"{self.title(name)}, {meaning}")
            for name in self.sets
            for way, meaning in WAYS.items()
            for rank in RANKS
        ]
        rows = []
        tuned = self.study.fine_tuned
        for run in self.study.rows("retrieval"):
            if run not in tuned:
                rows.append(self.row(run, self._recalls(run, self.sets), "zero-shot"))
        for run in self.study.rows("retrieval"):
            if run not in tuned:
                continue
            own = self._own_sets(run)
            cells = self._recalls(run, own)
            rows.append(self.row(run, cells, "fine-tuned"))
            other = [name for name in self.sets if name not in own]
            if other:
                label = self.study.label(run) + " *"
                rows.append(self.row(run, self._recalls(run, other), TRANSFERRED, label))
        for section, title in (("zero_shot_retrieval", "zero-shot"), ("fine_tuned_retrieval", "fine-tuned")):
            rows += self._published_recalls(section, title)
        order = {"zero-shot": 0, TRANSFERRED: 1, "fine-tuned": 2}
        rows.sort(key=lambda row: (order[row.section], row.kind == "paper"))
        notes = ["Image to text counts a hit if any of the image's captions is among the first k."]
        notes += warnings(self.study, self.results, "retrieval", "benchmarks", self.title)
        return Table("retrieval", "Image-text retrieval (recall, %)", columns, rows, notes)

    def _own_sets(self, run: str) -> list[str]:
        """The benchmarks whose training split a fine-tuning used; all, where no card says anything."""
        source = str(self.study.fine_tuned[run].get("source"))
        own = [name for name in self.sets if source in self.cards[name].fine_tuned_on]
        return own or [name for name in self.sets if not self.cards[name].fine_tuned_on]

    def _recalls(self, run: str, benchmarks: list[str]) -> dict[str, Cell]:
        cells = {}
        for name in self.sets:
            for way in WAYS:
                for rank in RANKS:
                    cells[f"{name}_{way}_{rank}"] = (
                        self.recall_cell(run, name, way, rank)
                        if name in benchmarks
                        else Cell(reason="in the other section: depends on what it was fine-tuned on")
                    )
        return cells

    def _published_recalls(self, section: str, title: str) -> list[Row]:
        block = self.published.get(section) or {"columns": []}
        wanted = {f"{name}_{way}" for name in self.sets for way in WAYS}
        if not wanted & set(block["columns"]):
            return []
        rows = []
        for label, entry in block.items():
            if label == "columns":
                continue
            cells = {}
            for column, values in zip(block["columns"], entry, strict=True):
                for number, rank in enumerate(RANKS):
                    cells[f"{column}_{rank}"] = published_cell(None if values is None else values[number])
            where = TRANSFERRED if label.endswith("*") else title
            rows.append(Row(label, "paper", cells, where))
        return rows

    def component_ablation(self) -> Table:
        columns = self.ablation_columns()
        rows = []
        for run in self.study.rows("component_ablation"):
            rows.append(self.row(run, {c.key: self.ablation_cell(run, c.key) for c in columns}))
        block = self.published.get("component_ablation") or {"columns": []}
        shared = set(block["columns"]) & {c.key for c in columns}
        for label, values in block.items() if shared else ():
            if label != "columns":
                numbers = dict(zip(block["columns"], values, strict=True))
                cells = {c.key: published_cell(numbers.get(c.key)) for c in columns}
                rows.append(Row(label, "paper", cells, "published"))
        notes = ["Each middle row adds one component to the baseline; the last row has all of them."]
        if not shared:
            notes.append("The paper's table is over MSCOCO and ImageNet, so its rows do not stand here.")
        table = Table("component_ablation", "Component ablation (%)", columns, rows, notes)
        notes += first_against_last(table)
        return table

    def ablation_columns(self) -> list[Column]:
        """R@1 and R@5 of the first retrieval benchmark both ways, as in the paper, then each task and their mean."""
        columns = [
            Column(f"{name}_{way}_{rank}", f"R@{rank[1:]}", f"{self.title(name)}, {meaning}")
            for name in self.sets[:1]
            for way, meaning in WAYS.items()
            for rank in ("r1", "r5")
        ]
        columns += [Column(f"{task}_top1", self.title(task), "Zero-shot") for task in self.tasks]
        if len(self.tasks) > 1:
            columns.append(Column("average", "average", "Zero-shot"))
        return columns

    def ablation_cell(self, run: str, key: str) -> Cell:
        if key == "average":
            return self.average_cell(run)
        if key.endswith("_top1"):
            return self.task_cell(run, key.removesuffix("_top1"))
        name, way, rank = key.rsplit("_", 2)
        return self.recall_cell(run, name, way, rank)

    def alignment(self) -> Table:
        """How often a label points at its object: what the paper's alignment pictures show, as a number."""
        measures = (
            ("pointing", "value", "chance", "label on its object"),
            ("composites", "value", "chance", "of two, on its own"),
            ("composites", "own_side", "own_side_chance", "of two, own side"),
        )
        columns, sets = [], self.study.benchmarks("alignment")
        for name in sets:
            for part, key, _, title in measures:
                columns.append(Column(f"{name}_{part}_{key}", title, self.title(name)))
        rows = []
        for run in self.study.rows("alignment"):
            cells = {}
            for name in sets:
                for part, key, chance, _ in measures:
                    members = self.study.replicas(run)
                    found = [self._pointing_cell(member, name, part, key, chance) for member in members]
                    cells[f"{name}_{part}_{key}"] = combine(found)
            rows.append(self.row(run, cells))
        notes = [
            "The patch most similar to any token of the label lies on the object (by the drawing's own mask). "
            "Two: two images side by side with a text that names both.",
            "A pooled model's patches and words go through its projections, which were trained on one vector each.",
        ]
        return Table("alignment", "Word-patch alignment: pointing accuracy (%)", columns, rows, notes)

    def _pointing_cell(self, run: str, benchmark: str, part: str, key: str, chance: str) -> Cell:
        found = (self.results.evaluation(run, "alignment") or {}).get("benchmarks", {}).get(benchmark)
        if found is None:
            return Cell(reason=self._why(run, "alignment", benchmark))
        measured = found[part]
        if measured.get(key) is None:
            return Cell(reason=measured.get("reason", "not measured"))
        interval = measured.get("ci95" if key == "value" else f"{key}_ci95")
        return Cell(measured[key], measured[chance], measured["n"], interval)


def _metric(card: BenchmarkCard) -> str:
    return {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}[card.metric]
