# Evaluation of one run: one command per protocol. Each writes its result and the outcome of every image or caption.


rule zero_shot:
    input:
        weights=lambda wildcards: STUDY.model_file(wildcards.run),
        cards=STUDY.cards("zero_shot"),
        prompts=lambda wildcards: STUDY.prompt_file(wildcards.run, "zero_shot"),
        corpus=STUDY.benchmark_files(),
    output:
        result=f"{RESULTS}/eval/{{run}}/zero_shot.json",
        outcomes=f"{RESULTS}/eval/{{run}}/zero_shot.npz",
    params:
        study=lambda wildcards: STUDY.evaluation_arguments(wildcards.run, "zero_shot"),
    log:
        f"{RESULTS}/logs/zero_shot/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/zero_shot/{{run}}.tsv"
    threads: STUDY.evaluation.get("threads", 2)
    resources:
        **STUDY.evaluation.get("resources", {}),
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.eval.zero_shot {params.study}"
        " out={output.result} > {log} 2>&1"


rule retrieval:
    input:
        weights=lambda wildcards: STUDY.model_file(wildcards.run),
        cards=STUDY.cards("retrieval"),
        prompts=lambda wildcards: STUDY.prompt_file(wildcards.run, "retrieval"),
        corpus=STUDY.benchmark_files(),
    output:
        result=f"{RESULTS}/eval/{{run}}/retrieval.json",
        outcomes=f"{RESULTS}/eval/{{run}}/retrieval.npz",
    params:
        study=lambda wildcards: STUDY.evaluation_arguments(wildcards.run, "retrieval"),
        tuned=lambda wildcards: STUDY.fine_tunes.get(wildcards.run, {}).get("source", ""),
    log:
        f"{RESULTS}/logs/retrieval/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/retrieval/{{run}}.tsv"
    threads: STUDY.evaluation.get("threads", 2)
    resources:
        **STUDY.evaluation.get("resources", {}),
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.eval.retrieval {params.study}"
        " fine_tuned_on={params.tuned} out={output.result} > {log} 2>&1"


rule selection:
    input:
        weights=lambda wildcards: STUDY.model_file(wildcards.run),
        cards=STUDY.cards("selection"),
        corpus=STUDY.benchmark_files(),
    output:
        result=f"{RESULTS}/eval/{{run}}/selection.json",
        outcomes=f"{RESULTS}/eval/{{run}}/selection.npz",
    params:
        study=lambda wildcards: STUDY.evaluation_arguments(wildcards.run, "selection"),
    log:
        f"{RESULTS}/logs/selection/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/selection/{{run}}.tsv"
    threads: STUDY.evaluation.get("threads", 2)
    resources:
        **STUDY.evaluation.get("resources", {}),
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.eval.selection {params.study}"
        " out={output.result} > {log} 2>&1"


rule scene_pointing:
    input:
        weights=lambda wildcards: STUDY.model_file(wildcards.run),
        cards=STUDY.cards("scene_pointing"),
        corpus=STUDY.benchmark_files(),
    output:
        result=f"{RESULTS}/eval/{{run}}/scene_pointing.json",
        outcomes=f"{RESULTS}/eval/{{run}}/scene_pointing.npz",
    params:
        study=lambda wildcards: STUDY.evaluation_arguments(wildcards.run, "scene_pointing"),
    log:
        f"{RESULTS}/logs/scene_pointing/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/scene_pointing/{{run}}.tsv"
    threads: STUDY.evaluation.get("threads", 2)
    resources:
        **STUDY.evaluation.get("resources", {}),
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.eval.scene_pointing {params.study}"
        " out={output.result} > {log} 2>&1"


rule alignment:
    input:
        weights=lambda wildcards: STUDY.model_file(wildcards.run),
        cards=STUDY.cards("alignment"),
        prompts=lambda wildcards: STUDY.prompt_file(wildcards.run, "alignment"),
        corpus=STUDY.benchmark_files(),
    output:
        result=f"{RESULTS}/eval/{{run}}/alignment.json",
        outcomes=f"{RESULTS}/eval/{{run}}/alignment.npz",
        picture=report(
            f"{RESULTS}/eval/{{run}}/alignment.png",
            caption="../report/alignment.rst",
            category="Word-patch alignment",
            labels={"run": "{run}"},
        ),
    params:
        study=lambda wildcards: STUDY.evaluation_arguments(wildcards.run, "alignment"),
    log:
        f"{RESULTS}/logs/alignment/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/alignment/{{run}}.tsv"
    threads: STUDY.evaluation.get("threads", 2)
    resources:
        **STUDY.evaluation.get("resources", {}),
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.eval.alignment {params.study}"
        " picture={output.picture} out={output.result} > {log} 2>&1"


rule linear_probe:
    input:
        weights=lambda wildcards: STUDY.model_file(wildcards.run),
        cards=STUDY.cards("linear_probe"),
        corpus=STUDY.benchmark_files(),
    output:
        result=f"{RESULTS}/eval/{{run}}/linear_probe.json",
        outcomes=f"{RESULTS}/eval/{{run}}/linear_probe.npz",
    params:
        study=lambda wildcards: STUDY.evaluation_arguments(wildcards.run, "linear_probe"),
    log:
        f"{RESULTS}/logs/linear_probe/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/linear_probe/{{run}}.tsv"
    threads: STUDY.evaluation.get("threads", 2)
    resources:
        **STUDY.evaluation.get("resources", {}),
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.eval.linear_probe {params.study}"
        " out={output.result} > {log} 2>&1"


# Scenes of several things, and where each model's names point: the picture of README.
rule scene_sheet:
    input:
        weights=[STUDY.weights(run) for run in STUDY.rows("scene_pointing")],
        cards=STUDY.cards("scene_pointing"),
        corpus=STUDY.benchmark_files(),
    output:
        picture=report(
            f"{RESULTS}/eval/scenes_compared.png",
            caption="../report/scenes.rst",
            category="Word-patch alignment",
            labels={"run": "scenes, beside each other"},
        ),
        parts=f"{RESULTS}/eval/scenes_compared.json",
    params:
        models=lambda wildcards, input: "[" + ",".join(input.weights) + "]",
        labels=STUDY.quoted_labels("scene_pointing"),
        root=STUDY.evaluation["root"],
        card=lambda wildcards, input: input.cards[0],
    log:
        f"{RESULTS}/logs/scene_sheet.log",
    benchmark:
        f"{RESULTS}/benchmarks/scene_sheet.tsv"
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.eval.scene_sheet 'models={params.models}' {params.labels} root={params.root}"
        " card={params.card} picture={output.picture} parts={output.parts} > {log} 2>&1"


# The paper's alignment figure, with all models of the alignment table side by side.
rule compare:
    input:
        weights=[STUDY.weights(run) for run in STUDY.rows("alignment")],
        cards=STUDY.cards("alignment"),
        prompts=STUDY.prompts,
        corpus=STUDY.benchmark_files(),
    output:
        report(
            f"{RESULTS}/eval/alignment_compared.png",
            caption="../report/alignment.rst",
            category="Word-patch alignment",
            labels={"run": "side by side"},
        ),
    params:
        models=lambda wildcards, input: "[" + ",".join(input.weights) + "]",
        labels=STUDY.quoted_labels("alignment"),
        root=STUDY.evaluation["root"],
        card=lambda wildcards, input: input.cards[0],
    log:
        f"{RESULTS}/logs/compare.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare.tsv"
    conda:
        "../envs/filip.yaml"
    shell:
        "python -m filip.eval.compare 'models={params.models}' {params.labels} root={params.root}"
        " card={params.card} prompts={input.prompts} picture={output} > {log} 2>&1"


# The page in which a person looks for words and patches: one file, no server.
if STUDY.explorer:

    rule explorer:
        input:
            weights=STUDY.explorer["weights"],
            card=STUDY.explorer["card"],
            corpus=STUDY.benchmark_files(),
        output:
            f"{RESULTS}/explore.html",
        params:
            models="[" + ",".join(STUDY.explorer["models"]) + "]",
            labels=STUDY.explorer["labels"],
            root=STUDY.evaluation["root"],
            most=STUDY.explorer["count"],
        log:
            f"{RESULTS}/logs/explorer.log",
        benchmark:
            f"{RESULTS}/benchmarks/explorer.tsv"
        conda:
            "../envs/filip.yaml"
        shell:
            "python -m filip.explore.export 'models={params.models}' {params.labels} images={input.card}"
            " root={params.root} count={params.most} out={output} > {log} 2>&1"
