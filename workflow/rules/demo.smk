# A corpus that is built here (its card's `built_by`): the demo's emoji come from npm packages and are served over HTTP
# while the study downloads them.


rule demo_corpus:
    output:
        list=f"{STUDY.corpus}/list.parquet",
        counts=f"{STUDY.corpus}/corpus.json",
        attribution=f"{STUDY.corpus}/attribution.json",
    params:
        builder=STUDY.corpus_builder,
        out=lambda wildcards, output: Path(output.list).parent,
        options=[f"{key}={'null' if value is None else value}" for key, value in config.get("demo", {}).items()],
    log:
        f"{RESULTS}/logs/demo_corpus.log",
    benchmark:
        f"{RESULTS}/benchmarks/demo_corpus.tsv"
    threads: 2
    shell:
        "python -m {params.builder} out={params.out} {params.options:q} > {log} 2>&1"
