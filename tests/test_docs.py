"""The documentation site builds strictly, from this checkout alone."""

import dataclasses
import html
import importlib
import importlib.util
import json
import os
import re
import shutil
import tomllib
import typing
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml

from filip.__main__ import commands as filip_commands
from filip.train.config import TrainConfig
from tests.eval.miniature import write_model, write_webdataset
from tests.report.results import STUDY, write, write_results
from tests.support.manual import code_of
from tests.support.processes import run_python, run_well

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    for name in ("docs", "bench"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "filip").symlink_to(ROOT / "filip")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    # A proxy that nobody listens to: whatever asks the network fails.
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = ("-m", "zensical", "build", "--strict", "--config-file", "mkdocs.yml")
    run_well(*command, variables={**os.environ, **offline}, cwd=folder)
    return folder / "site"


@pytest.mark.slow
def test_every_page_of_docs_is_in_the_navigation(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    for page in pages:
        assert (site / page.with_suffix(".html")).is_file(), page
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert {Path(name) for name in re.findall(r"[\w/]+\.md", str(navigation))} == pages


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    loads = re.compile(r"<(?:link|script|img|iframe)\b[^>]*\b(?:href|src)=\"(?:https?:)?//")
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text()), page


def test_every_link_opens_a_file_when_the_site_is_read_from_the_disk(site: Path) -> None:
    """A link to a folder would be a listing of the folder there; an anchor has to be on its page."""
    followed = 0
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue  # what a web server shows; its links begin at the server's root
        for link in re.findall(r"""\b(?:href|src)=["']?([^"'\s>]+)""", page.read_text()):
            if re.match(r"[a-z]+:|//", link):
                continue
            path, _, anchor = html.unescape(urllib.parse.unquote(link)).partition("#")
            target = page.parent / path.partition("?")[0] if path else page
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            if anchor and not anchor.startswith("__"):
                assert re.search(rf"""\b(id|name)=["']?{re.escape(anchor)}["'\s>]""", target.read_text()), (
                    f"{page}: {link}"
                )
            followed += 1
    assert followed > 500


def documented_commands() -> Iterator[tuple[str, str, str]]:
    """Yield (page, module, arguments) of every command in the manual, the measurements and the README."""
    known = {command.words: command.module for command in filip_commands()}
    groups = "|".join(sorted({words[0] for words in known}))
    for page in [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "bench/RESULTS.md"]:
        text = page.read_text().replace("\\\n", " ")
        for module, arguments in re.findall(r"(?:-m|--module) ((?:filip|bench)\.[\w.]*\w)((?: [^\n`#]*)?)", text):
            yield page.name, module, arguments
        for line in re.findall(rf"(?:^|[\s`(])filip ((?:{groups})\b[^\n`#]*)", text):
            words = line.split()
            results = [n for n in range(1, len(words) + 1) if tuple(words[:n]) in known]
            module = known[tuple(words[: results[-1]])] if results else f"filip {' '.join(words[:2])}"
            yield page.name, module, line.partition(" -- ")[0]  # after it comes another command's line


def test_every_documented_command_exists_with_its_options() -> None:
    for page, module, arguments in documented_commands():
        assert " " not in module and importlib.util.find_spec(module), f"{page}: there is no {module}"
        schema = schema_of(module, arguments)
        named = set(re.findall(r"(?:^|[\s\['])([a-z_]+(?:\.[a-z_]+)*)=", arguments))
        unknown = named - {"experiment", "model", *fields_of(schema)} if schema else set()
        assert not unknown, f"{page}: {module} has no option {', '.join(sorted(unknown))}"


def schema_of(module: str, arguments: str = "") -> type | None:
    """The dataclass that the command is configured by; None for what takes other arguments, and for bench."""
    if module == "filip.train":
        return TrainConfig
    code = None if module.startswith("bench.") else importlib.import_module(module)
    if own := getattr(code, "schema_of", None):  # its options depend on one of them
        return own(arguments.split())
    main = getattr(code, "main", None)
    hints = typing.get_type_hints(main) if main else {}
    return next((hint for hint in hints.values() if dataclasses.is_dataclass(hint)), None)


def fields_of(schema: typing.Any, prefix: str = "") -> set[str]:
    names = set()
    for field in dataclasses.fields(schema):
        names.add(prefix + field.name)
        inner = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if dataclasses.is_dataclass(inner):
            names |= fields_of(inner, f"{prefix}{field.name}.")
    return names


def test_the_python_of_the_interaction_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks run one after the other in one namespace, with the variables of a training step at that point."""
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1).requires_grad_()

    lengths = torch.tensor([4, 2, 3])
    namespace: dict[str, typing.Any] = {
        "image_tokens": unit(3, 5, 8), "text_tokens": unit(9, 8), "text_lengths": lengths, "lengths": lengths,
        "ids": torch.arange(3), "logit_scale": torch.tensor(10.0), "scale": torch.tensor(10.0),
        "image": SimpleNamespace(tokens=unit(3, 5, 8), pooled=unit(3, 8)),
        "text": SimpleNamespace(tokens=unit(9, 8), pooled=unit(3, 8)), "model": torch.nn.Identity(),
    }  # fmt: skip
    absent = [name for name in ("pylate",) if importlib.util.find_spec(name) is None]
    for block in code_of("interaction.md"):
        if not any(f"from {name}" in block for name in absent):
            exec("from late_interaction import *\n" + block, namespace)
    assert namespace["image_tokens"].grad.abs().sum() > 0
    assert namespace["loss"] > namespace["token"].loss
    assert "found 100%" in capsys.readouterr().out


@pytest.fixture
def my_package(tmp_path: Path) -> dict[str, str]:
    """Return a process's environment in which the extending page's ``my_package`` is installed, as printed there."""
    about = tmp_path / "my_package-1.0.dist-info"
    (tmp_path / "my_package").mkdir()
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    for section in ("A loss term", "An optimiser", "An evaluation protocol", "A model of somebody else"):
        codes, [toml] = code_of("extending.md", section), code_of("extending.md", section, "toml")
        [[group, entries]] = tomllib.loads(toml)["project"]["entry-points"].items()
        with open(about / "entry_points.txt", "a") as file:
            file.write(f"[{group}]\n")
            for (name, value), code in zip(entries.items(), codes, strict=True):
                file.write(f"{name} = {value}\n")
                module = value.partition(":")[0].replace(".", "/")
                (tmp_path / module).with_suffix(".py").write_text(code)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}


@pytest.mark.slow
def test_a_training_is_planned_with_the_pages_term_and_optimiser(my_package: dict[str, str]) -> None:
    terms = ["loss.my_term=0.5", "loss.my_margin={weight: 0.5, margin: 0.1}"]
    plan = ["-m", "filip", "train", "plan", "experiment=one_gpu", "optimizer.name=sgd", *terms]
    done = run_well(*plan, variables=my_package)
    # SGD keeps nothing, so the plan has no moments
    assert "gradients" in done.stdout and "moments" not in done.stdout, done.stdout


@pytest.mark.slow
def test_a_package_imported_before_filip_has_its_optimiser_and_term(my_package: dict[str, str]) -> None:
    code = """
import my_package.my_term, my_package.sgd
import torch, torch.nn.functional as F
from filip.common.errors import UserError
from filip.cli.command import compose_config
from filip.models import Encoded
from filip.train.config import OPTIMIZERS, TERMS, TrainConfig
from filip.train.losses import Loss
assert TERMS["my_term"] is my_package.my_term.MY_TERM and OPTIMIZERS["sgd"] is my_package.sgd.PLAIN_SGD
image, text = (F.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
for given in (0.0, 0.5):
    option = f"loss.my_margin={{weight: 1, margin: {given}}}"
    config = compose_config(TrainConfig, ["run_dir=r", "out=o", option], "train")
    found = Loss({"my_margin": 1.0}, config)(Encoded(image, text, torch.ones(1)), torch.arange(4)).loss
    torch.testing.assert_close(found, (1 - (image * text).sum(1) - given).relu().mean())
for wrong, words in (("margn: 1", "did you mean 'margin'"), ("margin: -1", "at least 0"), ("margin: big", "a number")):
    try:
        compose_config(TrainConfig, ["run_dir=r", "out=o", f"loss.my_margin={{weight: 1, {wrong}}}"], "train").check()
        raise SystemExit(wrong)
    except UserError as error:
        assert words in str(error), error
"""
    run_well("-c", code, variables=my_package)


@pytest.mark.slow
def test_the_model_of_the_extending_page_is_evaluated_by_its_prefix(my_package: dict[str, str], tmp_path: Path) -> None:
    write_webdataset(tmp_path / "demo_fluent", None, [["text " * (i + 1)] for i in range(6)])
    more = [f"root={tmp_path}", "data=demo_fluent", "protocols=[retrieval]", f"out={tmp_path}/out"]
    run_well("-m", "filip", "eval", "model=colours:plain", *more, variables=my_package, cwd=ROOT)
    result = json.loads((tmp_path / "out/retrieval/demo_fluent.json").read_text())
    assert result["benchmarks"]["demo_fluent"]["images"] == 6
    done = run_python("-m", "filip", "eval", "model=colour:plain", *more, variables=my_package, cwd=ROOT)
    assert "did you mean colours:plain?" in done.stderr and "wukong, colours)" in done.stderr


@pytest.mark.slow
def test_the_pages_protocol_is_run_and_has_line_and_table(my_package: dict[str, str], tmp_path: Path) -> None:
    write_webdataset(tmp_path / "demo_fluent", None, [[f"text {i}"] for i in range(6)])
    model = write_model(tmp_path / "m.safetensors")
    given = [f"model={model}", f"root={tmp_path}", "data=demo_fluent", "protocols=[agreement]"]
    done = run_well("-m", "filip", "eval", *given, f"out={tmp_path}/out", variables=my_package, cwd=ROOT)
    result = json.loads((tmp_path / "out/agreement/demo_fluent.json").read_text())
    assert result["protocol"] == "agreement" and result["benchmarks"]["demo_fluent"]["n"] == 6
    cosine = result["benchmarks"]["demo_fluent"]["cosine"]
    row = next(line for line in done.stdout.splitlines() if "demo_fluent (agreement)" in line)
    assert row.split()[-1] == f"{cosine:.4g}"
    results = tmp_path / "results"
    write_results(results)
    write(results / "study.json", {**STUDY, "eval": {**STUDY["eval"], "agreement": ["demo_fluent"]}})
    write(results / "eval/filip/agreement/all.json", result)
    command = ("-m", "filip.report.tables", f"results={results}", "resamples=10")
    run_well(*command, variables=my_package, cwd=ROOT)
    table = json.loads((results / "tables/tables.json").read_text())["tables"]["agreement"]
    shown = {row["run"]: row["cells"]["demo_fluent"]["value"] for row in table["rows"]}
    assert shown == {"clip": None, "late": None, "filip": cosine} and table["title"] == "Agreement (cosine)"
