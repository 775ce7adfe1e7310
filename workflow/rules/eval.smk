ALIGNMENT, EXPLORER = STUDY.shown("alignment"), STUDY.shown("explorer")

# Evaluation: one job per model, or per model and card (eval.per_card of the study). It loads the model once and runs every
# protocol of the study that shows it. Each result is a file of its own, with the outcome of every image or caption; a
# job that runs again keeps those that are current.


rule evaluate:
    input:
        unpack(STUDY.job_inputs),
    output:
        touch(f"{RESULTS}/eval/{STUDY.job}.done"),
    params:
        gpu=STUDY.own_gpu,
        study=lambda wildcards: STUDY.evaluation_arguments(wildcards.run, wildcards.get("card")),
        out=f"{RESULTS}/eval/{{run}}",
    log:
        f"{RESULTS}/logs/evaluate/{STUDY.job}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{STUDY.job}.tsv"
    threads: STUDY.evaluation.get("threads", 2)
    priority: 1  # before the pictures, which take half as long
    resources:
        **STUDY.evaluation_resources,
    shell:
        "{params.gpu}python -m filip.eval {params.study} out={params.out} > {log} 2>&1"


# Scenes of several things, and where each model's names point: the picture of README.
rule scene_sheet:
    input:
        weights=[STUDY.weights(run) for run in STUDY.rows("scene_pointing")],
        cards=[STUDY.card_file(name) for name in STUDY.benchmarks("scene_pointing")],
        corpus=STUDY.benchmark_files(),
    output:
        picture=report(
            f"{RESULTS}/eval/scenes_compared.png",
            caption="../report/scenes.rst",
            category="Word-patch alignment",
            labels={"run": "scenes, side by side"},
        ),
        parts=f"{RESULTS}/eval/scenes_compared.json",
    params:
        gpu=STUDY.own_gpu,
        models=lambda wildcards, input: "[" + ",".join(input.weights) + "]",
        labels=STUDY.quoted_labels(STUDY.rows("scene_pointing")),
        root=STUDY.evaluation["root"],
        card=lambda wildcards, input: input.cards[0],
    log:
        f"{RESULTS}/logs/scene_sheet.log",
    benchmark:
        f"{RESULTS}/benchmarks/scene_sheet.tsv"
    resources:
        **STUDY.evaluation_resources,
    shell:
        "{params.gpu}python -m filip.eval.picture kind=scenes 'models={params.models}' {params.labels}"
        " root={params.root} card={params.card} out={output.picture} parts={output.parts} > {log} 2>&1"


# The paper's alignment figure: which word each patch looks at, of several models side by side.
if ALIGNMENT:

    rule alignment_sheet:
        input:
            weights=ALIGNMENT["weights"],
            card=ALIGNMENT["card"],
            prompts=STUDY.prompt_file(STUDY.config["alignment"]["models"][0]),
            corpus=STUDY.benchmark_files(),
        output:
            report(
                f"{RESULTS}/eval/alignment.png",
                caption="../report/alignment.rst",
                category="Word-patch alignment",
                labels={"run": "words on patches, side by side"},
            ),
        params:
            gpu=STUDY.own_gpu,
            model=lambda wildcards: ALIGNMENT["models"][0],
            others="[" + ",".join(ALIGNMENT["models"][1:]) + "]",
            labels=ALIGNMENT["labels"],
            root=STUDY.evaluation["root"],
            prompts=lambda wildcards: STUDY.prompts,
        log:
            f"{RESULTS}/logs/alignment_sheet.log",
        benchmark:
            f"{RESULTS}/benchmarks/alignment_sheet.tsv"
        resources:
            **STUDY.evaluation_resources,
        shell:
            "{params.gpu}python -m filip.eval.picture kind=alignment model={params.model} 'others={params.others}'"
            " {params.labels} root={params.root} data={input.card} 'prompts={params.prompts}' out={output} > {log} 2>&1"


# The page in which a person looks for words and patches: one file, no server.
if EXPLORER:

    rule explorer:
        input:
            weights=EXPLORER["weights"],
            card=EXPLORER["card"],
            corpus=STUDY.benchmark_files(),
        output:
            f"{RESULTS}/explore.html",
        params:
            gpu=STUDY.own_gpu,
            models="[" + ",".join(EXPLORER["models"]) + "]",
            labels=EXPLORER["labels"],
            root=STUDY.evaluation["root"],
            most=EXPLORER["count"],
        log:
            f"{RESULTS}/logs/explorer.log",
        benchmark:
            f"{RESULTS}/benchmarks/explorer.tsv"
        resources:
            **STUDY.evaluation_resources,
        shell:
            "{params.gpu}python -m filip.explore.export 'models={params.models}' {params.labels} images={input.card}"
            " root={params.root} count={params.most} out={output} > {log} 2>&1"
