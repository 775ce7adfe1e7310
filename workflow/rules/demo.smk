# A corpus that is built here (its card's `built_by`): the demo's emoji come from npm packages and are served over HTTP
# while the study downloads them.

DEMO = config.get("demo", {})


rule demo_corpus:
    output:
        list=f"{STUDY.corpus}/list.parquet",
        counts=f"{STUDY.corpus}/corpus.json",
        attribution=f"{STUDY.corpus}/attribution.json",
    params:
        builder=STUDY.corpus_builder,
        out=lambda wildcards, output: Path(output.list).parent,
        port=DEMO.get("port", 8765),
        limit=DEMO.get("limit") or "null",
        scenes=" ".join(f"{key}={DEMO[key]}" for key in ("scenes", "test_scenes") if key in DEMO),
        cache=DEMO.get("cache", ".cache/demo"),
    log:
        f"{RESULTS}/logs/demo_corpus.log",
    benchmark:
        f"{RESULTS}/benchmarks/demo_corpus.tsv"
    threads: 2
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m {params.builder} out={params.out} port={params.port} limit={params.limit}"
        " {params.scenes} cache={params.cache} > {log} 2>&1"
