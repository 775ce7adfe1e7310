# From JSON files to what people read: tables, one summary, one page. Snakemake's own report embeds them.

EVALUATIONS = [f"{RESULTS}/eval/{job}.done" for job in STUDY.evaluations()]
PICTURES = [f"{RESULTS}/eval/alignment.png"] if ALIGNMENT else []
PICTURES += [f"{RESULTS}/eval/scenes_compared.json"] if STUDY.draws_scenes else []
PICTURES += [f"{RESULTS}/explore.html"] if EXPLORER else []
TRAININGS = expand(f"{RESULTS}/models/{{run}}.json", run=STUDY.evaluated or STUDY.trained) + expand(
    f"{RESULTS}/efficiency/{{row}}.json", row=STUDY.efficiency
)


rule study_config:
    output:
        STUDY.config_file,
    params:
        text=lambda wildcards: STUDY.config_text(),  # a string would be searched for wildcards
    log:
        f"{RESULTS}/logs/study_config.log",
    shell:
        "printf '%s\\n' {params.text:q} > {output} 2> {log}"


rule tables:
    input:
        EVALUATIONS,
        TRAININGS,
        study=STUDY.config_file,
        cards=[STUDY.card_file(name) for name in STUDY.all_benchmarks],  # for titles and metrics
        published=edited("eval/paper_tables.yaml"),
    output:
        data=f"{RESULTS}/tables/tables.json",
        html=report(
            expand(f"{RESULTS}/tables/{{table}}.html", table=STUDY.tables),
            caption="../report/tables.rst",
            category="Tables",
        ),
    params:
        results=lambda wildcards, input: Path(input.study).parent,
        out_dir=lambda wildcards, output: Path(output.data).parent,
    log:
        f"{RESULTS}/logs/tables.log",
    shell:
        "python -m filip.report.tables study={input.study} results={params.results}"
        " published={input.published} out_dir={params.out_dir} > {log} 2>&1"


rule summary:
    input:
        tables=rules.tables.output.data,
        funnel=f"{RESULTS}/funnel.json",
        study=STUDY.config_file,
    output:
        f"{RESULTS}/summary.json",
    params:
        results=lambda wildcards, input: Path(input.study).parent,
    log:
        f"{RESULTS}/logs/summary.log",
    shell:
        "python -m filip.report.summary study={input.study} results={params.results} out={output} > {log} 2>&1"


rule page:
    input:
        PICTURES,
        TRAININGS,
        summary=rules.summary.output,
        tables=rules.tables.output.data,
        study=STUDY.config_file,
        attribution=f"{STUDY.corpus}/attribution.json" if STUDY.corpus_builder else [],
    output:
        report(
            f"{RESULTS}/report.html",
            caption="../report/page.rst",
            category="Overview",
        ),
    params:
        results=lambda wildcards, input: Path(input.study).parent,
    log:
        f"{RESULTS}/logs/page.log",
    shell:
        "python -m filip.report.page study={input.study} results={params.results} out={output} > {log} 2>&1"


# With the licence and the attribution of the model that the training started from.
rule export:
    input:
        weights=f"{RESULTS}/models/{{run}}.safetensors",
        tables=rules.tables.output.data,
    output:
        directory(f"{RESULTS}/export/{{run}}"),
    params:
        to=STUDY.config.get("export", {}).get("to"),
    log:
        f"{RESULTS}/logs/export/{{run}}.log",
    shell:
        "python -m filip.export to={params.to} model={input.weights} out={output} > {log} 2>&1"
