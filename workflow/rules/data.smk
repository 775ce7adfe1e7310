# From a source card to shards with candidate captions. Shards and side-cars are params, not outputs: Snakemake
# deletes the outputs of a failed job, and a month of downloads must survive one. The outputs are the small files
# that each command writes last. The card is a param and not an input, so that a comment in it makes nothing stale:
# what a stage reads of it are its `settings`. With `data: {parts: N}` in a study, N jobs share each stage: they leave
# blocks of work next to its result, which its rule merges. Each is the rule's command with part=, and so waits for
# what the rule waits for, but for the parts.


rule url_list:
    input:
        listed=lambda wildcards: STUDY.list_input(wildcards.source),
        parts=lambda wildcards: STUDY.parts(wildcards.source, "prepare", wildcards.get("part")),
    output:
        list=f"{DATA}/{{source}}/list.parquet",
        funnel=f"{DATA}/{{source}}/funnel/prepare.json",
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "prepare"),
        folder=f"{DATA}/{{source}}",
        part=STUDY.part,
        list=lambda wildcards: [f"list={path}" for path in STUDY.built_list(wildcards.source)],
    wildcard_constraints:
        source=STUDY.pattern(with_images=False),
    log:
        f"{RESULTS}/logs/url_list/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.prepare source={params.card:q} {params.list:q} out={params.folder:q}/list.parquet"
        " funnel={params.folder:q}/funnel/prepare.json threads={threads} memory={params.memory:q} part={params.part}"
        " > {log:q} 2>&1"


rule text_rules:
    input:
        list=f"{DATA}/{{source}}/list.parquet",
        parts=lambda wildcards: STUDY.parts(wildcards.source, "text_rules", wildcards.get("part")),
    output:
        kept=f"{DATA}/{{source}}/kept.parquet",
        funnel=f"{DATA}/{{source}}/funnel/text_rules.json",
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "text_rules"),
        folder=f"{DATA}/{{source}}",
        part=STUDY.part,
    wildcard_constraints:
        source=STUDY.pattern(with_images=False),
    log:
        f"{RESULTS}/logs/text_rules/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.text_rules source={params.card:q} list={input.list:q}"
        " out={params.folder:q}/kept.parquet funnel={params.folder:q}/funnel/text_rules.json"
        " processes={threads} threads={threads} memory={params.memory:q} part={params.part} > {log:q} 2>&1"


rule download:
    input:
        kept=f"{DATA}/{{source}}/kept.parquet",
        corpus=lambda wildcards: STUDY.built_list(wildcards.source),
        parts=lambda wildcards: STUDY.parts(wildcards.source, "download", wildcards.get("part")),
    output:
        funnel=f"{DATA}/{{source}}/funnel/download.json",
    params:
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "download"),
        given=STUDY.download_settings(),
        # Images that are built here come from a server that lives as long as the download. Not a service() rule: when
        # its consumer fails, Snakemake 9 waits forever for the service to end.
        while_served=lambda wildcards: STUDY.while_served(wildcards.source),
        folder=f"{DATA}/{{source}}",
        part=STUDY.part,
    wildcard_constraints:
        source=STUDY.pattern(with_images=False),
    log:
        f"{RESULTS}/logs/download/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "{params.while_served}python -m filip.data.download source={params.card:q} list={input.kept:q}"
        " out={params.folder:q}/shards funnel={params.folder:q}/funnel/download.json {params.given:q}"
        " part={params.part} > {log:q} 2>&1"


# For a source that has its images, in place of the three rules above.
rule ingest:
    input:
        images=lambda wildcards: STUDY.images_input(wildcards.source),
        parts=lambda wildcards: STUDY.parts(wildcards.source, "ingest", wildcards.get("part")),
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
        folder=f"{DATA}/{{source}}",
        part=STUDY.part,
    wildcard_constraints:
        source=STUDY.pattern(with_images=True),
    log:
        f"{RESULTS}/logs/ingest/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.ingest source={params.card:q} {params.images:q} out={params.folder:q}/shards"
        " list={params.folder:q}/list.parquet kept={params.folder:q}/kept.parquet"
        " text_funnel={params.folder:q}/funnel/text_rules.json funnel={params.folder:q}/funnel/ingest.json"
        " processes={threads} threads={threads} memory={params.memory:q} part={params.part} > {log:q} 2>&1"


rule translate:
    input:
        stored=lambda wildcards: STUDY.stored(wildcards.source),
        parts=lambda wildcards: STUDY.parts(wildcards.source, "translate", wildcards.get("part")),
    output:
        f"{DATA}/{{source}}/funnel/translate.json",
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        settings=lambda wildcards: STUDY.settings(wildcards.source, "translate"),
        folder=f"{DATA}/{{source}}",
        part=STUDY.part,
    log:
        f"{RESULTS}/logs/translate/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.translate source={params.card:q} shards={params.folder:q}/shards"
        " out={params.folder:q}/captions funnel={params.folder:q}/funnel/translate.json"
        " processes={threads} threads={threads} memory={params.memory:q} part={params.part} > {log:q} 2>&1"


# For a study with `data: {score: …}`.
rule score:
    input:
        captions=f"{DATA}/{{source}}/funnel/translate.json",
        parts=lambda wildcards: STUDY.parts(wildcards.source, "score", wildcards.get("part")),
    output:
        f"{DATA}/{{source}}/funnel/score.json",
    params:
        memory=STUDY.data_memory,
        card="data/{source}.yaml",
        given=STUDY.score_arguments(),
        folder=f"{DATA}/{{source}}",
        part=STUDY.part,
    log:
        f"{RESULTS}/logs/score/{{source}}.log",
    threads: STUDY.data_threads
    shell:
        "python -m filip.data.score source={params.card:q} shards={params.folder:q}/shards"
        " captions={params.folder:q}/captions out={params.folder:q}/scored {params.given:q}"
        " funnel={params.folder:q}/funnel/score.json processes={threads} memory={params.memory:q} part={params.part}"
        " > {log:q} 2>&1"


use rule url_list as url_list_part with:
    output:
        touch(f"{DATA}/{{source}}/parts/prepare/{{part}}-of-{{parts}}"),
    log:
        f"{RESULTS}/logs/url_list_part/{{source}}-{{part}}-of-{{parts}}.log",


use rule text_rules as text_rules_part with:
    output:
        touch(f"{DATA}/{{source}}/parts/text_rules/{{part}}-of-{{parts}}"),
    log:
        f"{RESULTS}/logs/text_rules_part/{{source}}-{{part}}-of-{{parts}}.log",


use rule download as download_part with:
    output:
        touch(f"{DATA}/{{source}}/parts/download/{{part}}-of-{{parts}}"),
    log:
        f"{RESULTS}/logs/download_part/{{source}}-{{part}}-of-{{parts}}.log",


use rule ingest as ingest_part with:
    output:
        touch(f"{DATA}/{{source}}/parts/ingest/{{part}}-of-{{parts}}"),
    log:
        f"{RESULTS}/logs/ingest_part/{{source}}-{{part}}-of-{{parts}}.log",


use rule translate as translate_part with:
    output:
        touch(f"{DATA}/{{source}}/parts/translate/{{part}}-of-{{parts}}"),
    log:
        f"{RESULTS}/logs/translate_part/{{source}}-{{part}}-of-{{parts}}.log",


use rule score as score_part with:
    output:
        touch(f"{DATA}/{{source}}/parts/score/{{part}}-of-{{parts}}"),
    log:
        f"{RESULTS}/logs/score_part/{{source}}-{{part}}-of-{{parts}}.log",


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
        folder=f"{DATA}/{{source}}",
        captions=lambda wildcards: STUDY.captions(wildcards.source),
        funnels=lambda wildcards, input: f"funnels=[{','.join(input.funnels)}]",
    log:
        f"{RESULTS}/logs/manifest/{{source}}.log",
    shell:
        "python -m filip.data.manifest source={params.card:q} list={input.list:q} kept={input.kept:q}"
        " shards={params.folder:q}/shards captions={params.captions:q} {params.funnels:q} out={output:q}"
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
