"""FILIP, end to end: URL list -> rules -> download -> back-translation -> training -> evaluation -> tables.

    snakemake --configfile workflow/config/<study>.yaml --profile workflow/profiles/local

Without --configfile the study is the demo. Rules are command lines; what they need to know of a study is in
filip/study/ and workflow/study.py.
"""

import os
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

CHECKOUT = str(Path(workflow.current_basedir))  # not workflow.basedir: another Snakefile may take this one as a module
sys.path.insert(0, CHECKOUT)
os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [CHECKOUT, os.getenv("PYTHONPATH")])))
from filip.common.errors import UserError
from filip.common.progress import say
from workflow.gpus import visible
from workflow.study import WorkflowStudy, edited

if "study" not in config:

    configfile: Path(CHECKOUT, "workflow/config/demo.yaml")

try:
    STUDY = WorkflowStudy(config)
except UserError as error:
    # One plain sentence: an exception would come with the Snakefile's name and line.
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)

RESULTS = STUDY.results
DATA = STUDY.data_dir


wildcard_constraints:
    source="|".join(STUDY.sources),
    run="|".join([*STUDY.runs, *STUDY.trials, *STUDY.fine_tunes, *STUDY.peers]),
    row="|".join(STUDY.efficiency) or "none",
    card="[^/]+",


report: "workflow/report/study.rst"


localrules:
    all,
    study_config,


rule all:
    input:
        f"{RESULTS}/report.html",
        expand(f"{RESULTS}/export/{{run}}", run=STUDY.config.get("export", {}).get("models", [])),
    default_target: True


if STUDY.corpus_builder:

    include: "workflow/rules/demo.smk"


include: "workflow/rules/data.smk"


include: "workflow/rules/train.smk"
include: "workflow/rules/eval.smk"
include: "workflow/rules/report.smk"


if workflow.is_main_process:
    if STUDY.evaluates_on_gpus and visible() and "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", len(visible()))  # as if --resources gpu=N had said how many there are
    if absent := STUDY.missing_data():
        say(f"no data in {STUDY.evaluation['root']} for {', '.join(absent)}: their cells will be empty")


onstart:
    # Not in a dry run, which shows the DAG of a study whose data are elsewhere; and imported here, since jobs need it not.
    from filip.study.check import require

    try:
        for sentence in require(STUDY, {job.rule.name for job in workflow.dag.needrun_jobs()}):
            say(sentence)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


onerror:
    for sentence in STUDY.failures():
        say(sentence)
