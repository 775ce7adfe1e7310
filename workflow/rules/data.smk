# From a source card to shards with candidate captions. Shards and side-cars are params, not outputs: Snakemake
# deletes the outputs of a failed job, and a month of downloads must survive one. The outputs are the small files
# that each command writes last. The card is a param and not an input, so that a comment in it makes nothing stale:
# what a stage reads of it are its `settings`.


rule url_list:
    input:
        listed=lambda wildcards: STUDY.list_input(wildcards.source),
    output:
        list=f"{DATA}/{{source}}/list.parquet",
        funnel=f"{DATA}/{{source}}/funnel/prepare.json",
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "prepare"),
        list=lambda wildcards: [f"list={path}" for path in STUDY.built_list(wildcards.source)],
    wildcard_constraints:
        source=STUDY.pattern(with_images=False),
    log:
        f"{RESULTS}/logs/url_list/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.prepare source={params.card:q} {params.list:q} out={output.list:q}"
        " funnel={output.funnel:q} threads={threads} memory={params.memory:q} > {log:q} 2>&1"


rule text_rules:
    input:
        list=f"{DATA}/{{source}}/list.parquet",
    output:
        kept=f"{DATA}/{{source}}/kept.parquet",
        funnel=f"{DATA}/{{source}}/funnel/text_rules.json",
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "text_rules"),
    wildcard_constraints:
        source=STUDY.pattern(with_images=False),
    log:
        f"{RESULTS}/logs/text_rules/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.text_rules source={params.card:q} list={input.list:q} out={output.kept:q}"
        " funnel={output.funnel:q} processes={threads} threads={threads} memory={params.memory:q} > {log:q} 2>&1"


# Its result says how many shards there are, and thereby how many jobs share the translation.
checkpoint download:
    input:
        kept=f"{DATA}/{{source}}/kept.parquet",
        corpus=lambda wildcards: STUDY.built_list(wildcards.source),
    output:
        funnel=f"{DATA}/{{source}}/funnel/download.json",
    params:
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "download"),
        given=STUDY.download_settings(),
        # Images that are built here come from a server that lives as long as the download. Not a service() rule: when
        # its consumer fails, Snakemake 9 waits forever for the service to end.
        while_served=lambda wildcards: STUDY.while_served(wildcards.source),
        shards=f"{DATA}/{{source}}/shards",
    wildcard_constraints:
        source=STUDY.pattern(with_images=False),
    log:
        f"{RESULTS}/logs/download/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "{params.while_served}python -m filip.data.download source={params.card:q} list={input.kept:q}"
        " out={params.shards:q} funnel={output.funnel:q} {params.given:q} > {log:q} 2>&1"


# For a source that has its images, in place of the three rules above. Like the download, it says how many shards there are.
checkpoint ingest:
    input:
        images=lambda wildcards: STUDY.images_input(wildcards.source),
    output:
        list=f"{DATA}/{{source}}/list.parquet",
        kept=f"{DATA}/{{source}}/kept.parquet",
        texts=f"{DATA}/{{source}}/funnel/text_rules.json",
        funnel=f"{DATA}/{{source}}/funnel/ingest.json",
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "ingest"),
        state=lambda wildcards: STUDY.images_state(wildcards.source),
        images=lambda wildcards: f"images={STUDY.images(wildcards.source)}",
        shards=f"{DATA}/{{source}}/shards",
    wildcard_constraints:
        source=STUDY.pattern(with_images=True),
    log:
        f"{RESULTS}/logs/ingest/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.ingest source={params.card:q} {params.images:q} out={params.shards:q} list={output.list:q}"
        " kept={output.kept:q} text_funnel={output.texts:q} funnel={output.funnel:q}"
        " processes={threads} threads={threads} memory={params.memory:q} > {log:q} 2>&1"


# What is to be translated, once for all parts.
rule translate_plan:
    input:
        stored=lambda wildcards: STUDY.stored(wildcards.source),
    output:
        touch(f"{DATA}/{{source}}/translated/plan.done"),
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "translate"),
        shards=f"{DATA}/{{source}}/shards",
        captions=f"{DATA}/{{source}}/captions",
    log:
        f"{RESULTS}/logs/translate_plan/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.translate source={params.card:q} shards={params.shards:q} out={params.captions:q}"
        " plan_only=true threads={threads} memory={params.memory:q} > {log:q} 2>&1"


# One part of the back-translation, into a cache that all parts fill. Parts run in parallel; on a cluster each is a
# separate job.
rule translate_part:
    input:
        plan=f"{DATA}/{{source}}/translated/plan.done",
    output:
        touch(f"{DATA}/{{source}}/translated/{{part}}-of-{{parts}}.done"),
    params:
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "translate"),
        shards=f"{DATA}/{{source}}/shards",
        captions=f"{DATA}/{{source}}/captions",
    log:
        f"{RESULTS}/logs/translate_part/{{source}}-{{part}}-of-{{parts}}.log",
    threads: 1
    shell:
        "python -m filip.data.translate source={params.card:q} shards={params.shards:q} out={params.captions:q}"
        " part={wildcards.part}/{wildcards.parts} processes=1 threads=1 > {log:q} 2>&1"


# Takes the translations from the cache, rejects the bad ones and writes the side-cars.
rule translate:
    input:
        stored=lambda wildcards: STUDY.stored(wildcards.source),
        parts=lambda wildcards: STUDY.translation_parts(
            wildcards.source,
            (checkpoints.ingest if STUDY.has_images(wildcards.source) else checkpoints.download)
            .get(**wildcards)
            .output.funnel,
        ),
    output:
        f"{DATA}/{{source}}/funnel/translate.json",
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "translate"),
        shards=f"{DATA}/{{source}}/shards",
        captions=f"{DATA}/{{source}}/captions",
    log:
        f"{RESULTS}/logs/translate/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.translate source={params.card:q} shards={params.shards:q} out={params.captions:q}"
        " funnel={output:q} processes={threads} threads={threads} memory={params.memory:q} > {log:q} 2>&1"


rule manifest:
    input:
        list=f"{DATA}/{{source}}/list.parquet",
        kept=f"{DATA}/{{source}}/kept.parquet",
        funnels=lambda wildcards: STUDY.source_fragments(wildcards.source),
    output:
        f"{DATA}/{{source}}/manifest.json",
    params:
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "manifest"),
        given=STUDY.download_settings(),
        shards=f"{DATA}/{{source}}/shards",
        captions=f"{DATA}/{{source}}/captions",
        funnels=lambda wildcards, input: f"funnels=[{','.join(input.funnels)}]",
    log:
        f"{RESULTS}/logs/manifest/{{source}}.log",
    shell:
        "python -m filip.data.manifest source={params.card:q} list={input.list:q} kept={input.kept:q}"
        " shards={params.shards:q} captions={params.captions:q} {params.funnels:q} out={output:q}"
        " {params.given:q} > {log:q} 2>&1"


rule funnel:
    input:
        STUDY.funnel_fragments(),
    output:
        f"{RESULTS}/funnel.json",
    params:
        fragments=lambda wildcards, input: f"fragments=[{','.join(input)}]",
    log:
        f"{RESULTS}/logs/funnel.log",
    shell:
        "python -m filip.data.funnel {params.fragments:q} out={output:q} > {log:q} 2>&1"
