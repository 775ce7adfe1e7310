# Training. Outputs are only the small final files, which the trainer writes last and atomically. Checkpoints, and a log
# of every start, lie in a run folder that Snakemake does not own (it would delete them with a failed job); its name
# carries a hash of the resolved config. filip/train/supervise.py keeps a second job from starting on a run that is in
# progress, and starts a Slurm job again where that helps; the rule's log is a link to the log of the newest start.


rule pretrain:
    input:
        unpack(lambda wildcards: STUDY.train_inputs(wildcards.run)),
    output:
        weights=f"{RESULTS}/models/{{run}}.safetensors",
        result=f"{RESULTS}/models/{{run}}.json",
    wildcard_constraints:
        run="|".join([*STUDY.runs, *STUDY.trials]),
    params:
        launch=lambda wildcards: STUDY.launch(wildcards.run).command(),
        ranks=lambda wildcards: STUDY.launch(wildcards.run).ranks_of_a_start,
        arguments=lambda wildcards: STUDY.train_arguments(wildcards.run),
        chosen=lambda wildcards: [f"$(cat {file})" for file in STUDY.chosen(wildcards.run)],
        run_dir=lambda wildcards: STUDY.run_dir(wildcards.run),
        requeue=lambda wildcards: STUDY.launch(wildcards.run).requeues,
    log:
        f"{RESULTS}/logs/train/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{{run}}.tsv"
    threads: lambda wildcards: STUDY.launch(wildcards[0]).threads(lambda: workflow.cores)
    priority: 10  # the longest jobs first: else the last of them runs alone, and evaluations wait for it
    retries: 0  # only Slurm starts a training again, and only where that helps: filip/train/supervise.py
    resources:
        **STUDY.train_resources(lambda: workflow.non_local_exec),
    shell:
        "python -m filip.train.supervise run_dir={params.run_dir} log={log} requeue={params.requeue} --"
        # Snakemake gives every process as many threads as the job has: shared by its ranks here
        " env OMP_NUM_THREADS=$(( {threads} > {params.ranks} ? {threads} / {params.ranks} : 1 ))"
        " {params.launch} {params.arguments:q} {params.chosen} run_dir={params.run_dir}"
        " out={output.weights}"


use rule pretrain as fine_tune with:
    wildcard_constraints:
        run="|".join(STUDY.fine_tunes) or "none",


# The best values of the settings that a study searches: the last words of the command of each run's training.
rule search:
    input:
        lambda wildcards: expand(f"{RESULTS}/models/{{trial}}.json", trial=STUDY.trials_of(wildcards.run)),
    output:
        f"{RESULTS}/search/{{run}}.txt",
    params:
        trials=lambda wildcards: STUDY.search_arguments(wildcards.run),
    log:
        f"{RESULTS}/logs/search/{{run}}.log",
    shell:
        "python -m filip.study.search {params.trials} out={output} 2> {log}"


# All rows of the efficiency ablation in one process group, their steps interleaved.
if STUDY.efficiency:

    rule efficiency:
        input:
            study=STUDY.config_file,
        output:
            expand(f"{RESULTS}/efficiency/{{row}}.json", row=STUDY.efficiency),
        params:
            launch=STUDY.efficiency_launch.command("filip.study.efficiency"),
            ranks=STUDY.efficiency_launch.ranks_of_a_start,
            out=lambda wildcards, output: Path(output[0]).parent,
            gathered=STUDY.gathered,
            requeue=STUDY.efficiency_launch.requeues,
        log:
            f"{RESULTS}/logs/efficiency.log",
        benchmark:
            f"{RESULTS}/benchmarks/efficiency.tsv"
        threads: lambda wildcards: STUDY.efficiency_launch.threads(lambda: workflow.cores)
        retries: 0
        resources:
            **STUDY.train_resources(lambda: workflow.non_local_exec, next(iter(STUDY.efficiency))),
        shell:
            "python -m filip.train.supervise run_dir={params.out} log={log} requeue={params.requeue} --"
            " env OMP_NUM_THREADS=$(( {threads} > {params.ranks} ? {threads} / {params.ranks} : 1 ))"
            " {params.launch} study={input.study} out={params.out} gathered={params.gathered}"
