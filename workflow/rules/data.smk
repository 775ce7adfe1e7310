# From a source card to shards with candidate captions. Shards and side-cars are params, not outputs: Snakemake
# deletes the outputs of a failed job, and a month of downloads must survive one. The outputs are the small files
# that each command writes last.


rule url_list:
    input:
        card="data/{source}.yaml",
        corpus=lambda wildcards: f"{RESULTS}/corpus/list.parquet" if wildcards.source == "demo" else [],
    output:
        list=f"{DATA}/{{source}}/list.parquet",
        funnel=f"{DATA}/{{source}}/funnel/prepare.json",
    params:
        list=lambda wildcards, input: f"list={input.corpus}" if input.corpus else "",
    log:
        f"{RESULTS}/logs/url_list/{{source}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/url_list/{{source}}.tsv"
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.data.prepare source={input.card} {params.list} out={output.list}"
        " funnel={output.funnel} > {log} 2>&1"


rule text_rules:
    input:
        card="data/{source}.yaml",
        list=f"{DATA}/{{source}}/list.parquet",
    output:
        kept=f"{DATA}/{{source}}/kept.parquet",
        funnel=f"{DATA}/{{source}}/funnel/text_rules.json",
    log:
        f"{RESULTS}/logs/text_rules/{{source}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/text_rules/{{source}}.tsv"
    threads: 2
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.data.text_rules source={input.card} list={input.list} out={output.kept}"
        " funnel={output.funnel} > {log} 2>&1"


rule download:
    input:
        card="data/{source}.yaml",
        kept=f"{DATA}/{{source}}/kept.parquet",
        corpus=lambda wildcards: f"{RESULTS}/corpus/list.parquet" if wildcards.source == "demo" else [],
    output:
        f"{DATA}/{{source}}/funnel/download.json",
    params:
        # The demo's images come from a server that lives as long as the download. Not a service() rule: when its
        # consumer fails, Snakemake 9 waits for ever for the service to end.
        while_served=lambda wildcards: STUDY.while_served(wildcards.source),
        shards=f"{DATA}/{{source}}/shards",
    log:
        f"{RESULTS}/logs/download/{{source}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/download/{{source}}.tsv"
    threads: 2
    conda:
        "../envs/filip.yaml"
    shell:
        "{params.while_served}python -m filip.data.download source={input.card} list={input.kept}"
        " out={params.shards} funnel={output} > {log} 2>&1"


rule translate:
    input:
        card="data/{source}.yaml",
        downloaded=f"{DATA}/{{source}}/funnel/download.json",
    output:
        f"{DATA}/{{source}}/funnel/translate.json",
    params:
        shards=f"{DATA}/{{source}}/shards",
        captions=f"{DATA}/{{source}}/captions",
    log:
        f"{RESULTS}/logs/translate/{{source}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/translate/{{source}}.tsv"
    threads: 2
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.data.translate source={input.card} shards={params.shards} out={params.captions}"
        " funnel={output} > {log} 2>&1"


rule manifest:
    input:
        card="data/{source}.yaml",
        list=f"{DATA}/{{source}}/list.parquet",
        kept=f"{DATA}/{{source}}/kept.parquet",
        funnels=expand(
            f"{DATA}/{{{{source}}}}/funnel/{{stage}}.json", stage=STUDY.DATA_STAGES
        ),
    output:
        f"{DATA}/{{source}}/manifest.json",
    params:
        shards=f"{DATA}/{{source}}/shards",
        captions=f"{DATA}/{{source}}/captions",
        funnels=lambda wildcards, input: "[" + ",".join(input.funnels) + "]",
    log:
        f"{RESULTS}/logs/manifest/{{source}}.log",
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.data.manifest source={input.card} list={input.list} kept={input.kept}"
        " shards={params.shards} captions={params.captions} 'funnels={params.funnels}' out={output} > {log} 2>&1"


rule funnel:
    input:
        STUDY.funnel_fragments(),
    output:
        f"{RESULTS}/funnel.json",
    params:
        fragments=lambda wildcards, input: "[" + ",".join(input) + "]",
    log:
        f"{RESULTS}/logs/funnel.log",
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.data.funnel 'fragments={params.fragments}' out={output} > {log} 2>&1"
