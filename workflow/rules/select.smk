# For a study with `select`: scores as columns of the side-cars, then the pairs whose scores meet its conditions. Another
# threshold runs only the second rule again. What is measured shard by shard lies with the shards, for all studies.

SELECTION = STUDY.selection


rule score:
    input:
        unpack(lambda wildcards: SELECTION.score_inputs(wildcards.source)),
    output:
        SELECTION.summary("{source}"),
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        shards=f"{DATA}/{{source}}/shards",
        captions=f"{DATA}/{{source}}/captions",
        cache=f"{DATA}/{{source}}/measured",
        scored=SELECTION.scored("{source}"),
        given=lambda wildcards: SELECTION.score_arguments(wildcards.source),
    log:
        f"{RESULTS}/logs/score/{{source}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score/{{source}}.tsv"
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.score source={params.card:q} shards={params.shards:q} captions={params.captions:q}"
        " out={params.scored:q} cache={params.cache:q} summary={output:q} {params.given:q} processes={threads}"
        " threads={threads} memory={params.memory:q} > {log:q} 2>&1"


rule select:
    input:
        SELECTION.summary("{source}"),
    output:
        SELECTION.fragment("{source}"),
    params:
        card="data/{source}.yaml",
        scored=SELECTION.scored("{source}"),
        captions=SELECTION.captions("{source}"),
        keep=SELECTION.keep(),
    log:
        f"{RESULTS}/logs/select/{{source}}.log",
    shell:
        "python -m filip.data.select source={params.card:q} captions={params.scored:q} out={params.captions:q}"
        " {params.keep:q} funnel={output:q} > {log:q} 2>&1"


use rule manifest as selected_manifest with:
    input:
        list=f"{DATA}/{{source}}/list.parquet",
        kept=f"{DATA}/{{source}}/kept.parquet",
        funnels=lambda wildcards: STUDY.funnel_of(wildcards.source),
    output:
        SELECTION.manifest("{source}"),
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "manifest"),
        given=STUDY.download_settings(),
        shards=f"{DATA}/{{source}}/shards",
        captions=SELECTION.captions("{source}"),
        funnels=lambda wildcards, input: f"funnels=[{','.join(input.funnels)}]",
    log:
        f"{RESULTS}/logs/selected_manifest/{{source}}.log",
