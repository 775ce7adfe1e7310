"""Run every evaluation that fits the data, in one command: ``filip eval model=M data=FOLDER_OR_CARDS``.

    filip eval model=filip.safetensors data=pictures                  # a folder of classes
    filip eval model=hf:openai/clip-vit-base-patch32 data=pairs.csv   # columns image and caption
    filip eval model=filip.safetensors data=[cifar10,flickr30k,sugar_crepe_swap_att] root=/data/benchmarks
    filip eval model=M data=[mscoco,flickr30k] root=DIR protocols=[retrieval] retrieval.ties=first

Each data set is opened before anything is encoded. Results are kept as ``<out>/<protocol>/<data set>.json``, with the
outcome of each image next to them; a result that is there, for the same weights, data and settings, is kept.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filip.cli.command import option, run_command
from filip.common.errors import UserError
from filip.common.files import check_output, digest, sha256_of, write_json
from filip.common.progress import say
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import EvalSet
from filip.eval.encode_set import Context
from filip.eval.encoders import Encoder, dtype_of, name_of
from filip.eval.families import AUTO, CLIP_PROMPTS, PROMPTS, prompt_file
from filip.eval.measures import as_text, measures
from filip.eval.options import DataOptions, ModelOptions, check_sets, result_header
from filip.eval.outcomes import outcomes_file, write_outcomes
from filip.eval.protocols import evaluate, protocol_of, protocols, settings_of, value_at
from filip.eval.text_tokens import CHOICES as TEXT_TOKENS
from filip.runs.saved_files import json_object, weights_of
from filip.sets.layout import walk


@dataclass
class EvaluationOptions(DataOptions, ModelOptions):
    out: str = option("", "folder for the results, results/eval/<model> if empty")
    protocols: list[str] = option(
        [name for name, protocol in protocols().items() if not protocol.on_request],
        f"which of those that fit the data; on request also "
        f"{' and '.join(name for name, protocol in protocols().items() if protocol.on_request)}",
        choices=tuple(protocols()),
    )
    only: dict[str, list[str]] = option(
        {}, "the cards of single protocols, e.g. {linear_probe: [cifar10]}; the others run on all that fit"
    )
    run: str = option("", "name of the run in the results; the model file's name if empty")
    prompts: str = option(
        AUTO, "prompt file, or one prompt such as 'a photo of a {c}.'; auto: those of the model's authors"
    )
    text_tokens: str = option(
        "all",
        "tokens of a text in a token-wise score: all; without_ends: without [BOS] and [EOS]; content: only words that "
        "name something",
        choices=TEXT_TOKENS,
    )
    batch_size: int = option(64, "images at a time", at_least=1)
    workers: int = option(0, "processes that decode images", at_least=0)
    overwrite: bool = option(False, "run again what is there already")

    @property
    def place(self) -> Path:
        """Return the folder of the results."""
        return Path(self.out or Path("results") / "eval" / model_name(self))

    def context(self) -> Context:
        """Return the context that the protocols share."""
        return Context(self.root, self.prompts, self.batch_size, self.workers, text_tokens=self.text_tokens)

    def settings(self, protocol: str) -> Any:
        """Return the settings of a protocol; one that has any has an option of its name."""
        return getattr(self, protocol, None) or protocol_of(protocol).settings()


Evaluation = make_dataclass(
    "Evaluation",
    [
        (name, protocol.settings, option(protocol.settings(), f"settings of the protocol {name}"))
        for name, protocol in protocols().items()
        if fields(protocol.settings)
    ],
    bases=(EvaluationOptions,),
)


# Options on which a result depends beyond precision, the protocol's settings, the weights and the data.
MODEL_AND_TEXTS = ("model", "run", "image_size", "tokens", "text_tokens", "fit", "root")


class EvaluationJob(NamedTuple):
    """A result file that is to be written. files: that its data are read from. skipped: why sets are left out."""

    protocol: str
    cards: list[BenchmarkCard]
    files: list[Path]
    file: Path
    skipped: dict[str, str]


def main(config: EvaluationOptions) -> None:
    """Evaluate a model on your own data or on benchmarks: every protocol that fits, and one table."""
    results = results_of(config)
    print(as_text([row for result in results for row in measures(result)]))
    print(f"\nresults: {config.place}")


def results_of(config: EvaluationOptions) -> list[dict[str, Any]]:
    """Return the results of all files, run or kept. Raises UserError as :func:`planned` does."""
    jobs = planned(config)
    # Read prompts and whatever else a protocol reads for its cards, so that a mistake in them is known at once.
    prompts = PROMPTS if config.prompts == AUTO else config.prompts  # our own file has an entry for every card of ours
    for job in jobs:
        if (prepare := protocol_of(job.protocol).prepare) is not None:
            for card in job.cards:
                prepare(card, config.settings(job.protocol), Context(config.root, prompts))
    requests = _requests(config, jobs)
    return _run(config, jobs, requests, [_kept(config, *pair) for pair in zip(jobs, requests, strict=True)])


def planned(config: EvaluationOptions) -> list[EvaluationJob]:
    """Return the result files to write. Opens each data set, so that a mistake stops now.

    Raises UserError if nothing fits, a name occurs twice, or a data set is missing.
    """
    check_output("out", config.out, "folder")
    chosen = {name: protocol_of(name) for name in config.protocols}
    cards = config.cards(kinds={kind for protocol in chosen.values() for kind in protocol.kinds})
    for protocol, names in config.only.items():
        if protocol not in config.protocols:
            raise UserError(f"only: {protocol} is none of the protocols that run, {', '.join(config.protocols)}")
        if absent := set(names) - {card.name for card in cards}:
            known = ", ".join(card.name for card in cards)
            raise UserError(f"only: {protocol} has no card {min(absent)} in data=; there are {known}")
    there, skipped = check_sets(cards, config.root, config.missing)
    files = {card.name: _files_of(Path(config.root), card, there[card.name]) for card in cards if card.name in there}
    if not there and config.missing == "stop":
        raise UserError(f"data: none of {', '.join(card.name for card in cards)} is there")
    return [
        EvaluationJob(
            name,
            [card] if card.name in there else [],
            files.get(card.name, []),
            config.place / name / f"{card.name}.json",
            {card.name: skipped[card.name]} if card.name in skipped else {},
        )
        for card in cards
        for name, protocol in chosen.items()
        if card.kind in protocol.kinds and card.name in config.only.get(name, [card.name])
    ]


def _run(
    config: EvaluationOptions,
    jobs: list[EvaluationJob],
    requests: list[dict[str, Any]],
    kept: list[dict[str, Any] | None],
) -> list[dict[str, Any]]:
    """Return the results of all files, of which some are kept."""
    encoder: Encoder | None = None
    results = []
    for job, request, done in zip(jobs, requests, kept, strict=True):
        if done is not None:
            say(f"{job.file}: done before")
            results.append(done)
            continue
        if not job.cards:
            if not job.file.exists():
                write_json(job.file, {"protocol": job.protocol, "benchmarks": {}, "skipped": job.skipped})
            continue
        if encoder is None:
            encoder = config.encoder()
            context = config.context()
        if encoder.grid == (0, 0) and protocol_of(job.protocol).on_patches and len(jobs) > 1:
            say(f"{', '.join(card.name for card in job.cards)}: left out: {encoder.name} has tokens without places")
            continue
        numbers, record = evaluate(job.protocol, encoder, job.cards, context, config.settings(job.protocol))
        result = result_header(config, encoder, config.run) | numbers
        if job.skipped:
            result["skipped"] = job.skipped
        result["requests"] = request
        earlier, size = json_object(job.file).get("benchmarks", {}), protocol_of(job.protocol).size
        for name, now in numbers["benchmarks"].items():
            if name in earlier and (then := value_at(earlier[name], size)) != value_at(now, size):
                say(f"{name}: {then:,} images then, {value_at(now, size):,} now")
        write_outcomes(job.file, record)
        write_json(job.file, result, shared=True)
        results.append(result)
    return results


def model_name(config: ModelOptions) -> str:
    """Return the name under which a model's results are kept: readable, and safe as a folder."""
    is_file = Path(config.model).exists() and ":" not in config.model
    name = Path(config.model).stem if is_file else config.model
    name += "-tokens" if config.tokens else ""
    name += f"-{config.image_size}px" if config.image_size else ""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _requests(config: EvaluationOptions, jobs: list[EvaluationJob]) -> list[dict[str, Any]]:
    """Return the request of each job, by benchmark; a result with another request is not kept."""
    options = {key: getattr(config, key) for key in MODEL_AND_TEXTS}
    precision = name_of(dtype_of(config.precision, config.own_device()))
    model = {**options, "precision": precision, "weights": weights_of(config.model)}
    names = (PROMPTS, CLIP_PROMPTS) if config.prompts == AUTO else (config.prompts,)
    texts = digest([name if "{c}" in name else prompt_file(name) for name in names])
    requests = []
    for job in jobs:
        protocol = protocol_of(job.protocol)
        settings = settings_of(protocol, config.settings(job.protocol), config.prompts)
        common = {**model, **settings, **({"prompt_texts": texts} if protocol.reads_prompts else {})}
        common |= {"version": protocol.version, "stamps": digest([_stamp(file) for file in job.files])}
        requests.append({card.name: {**common, "card": digest(asdict(card))} for card in job.cards})
    return requests


def _files_of(root: Path, card: BenchmarkCard, data: EvalSet) -> list[Path]:
    """Return the files that a set is read from: those it names, and all at the card's path, behind links too."""
    place = root / card.path
    below = [file for file, _ in walk(place)] if place.is_dir() and card.path else [place]
    return sorted({*below, *map(Path, data.files())})


def _stamp(file: Path) -> list[Any]:
    """Return what changes with a file's bytes, also where its size and its time of change were kept."""
    with contextlib.suppress(OSError):
        about = file.stat()
        return [str(file), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
    return [str(file)]


def _kept(config: EvaluationOptions, job: EvaluationJob, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result that an earlier run wrote for the same request; None if there is none, or it is not wanted.

    Completes the request by the hash of the data: the earlier one where the stamps of all files are as they were.
    """
    if not job.cards:
        return None
    result = json_object(job.file)
    before = result.get("requests", {})
    for name, now in request.items():
        earlier = before.get(name, {})
        same = "data" in earlier and earlier.get("stamps") == now["stamps"]
        hashes = [] if same else [[str(file), sha256_of(file) if file.is_file() else None] for file in job.files]
        now["data"] = earlier["data"] if same else digest(hashes)
        changed = [key for key, value in now.items() if key != "stamps" and earlier.get(key) != value]
        if changed or config.overwrite or not zipfile.is_zipfile(outcomes_file(job.file)):
            if earlier and changed:
                say(f"{job.file}: evaluated again, since it was made with other {', '.join(changed)}")
            return None
    return result


if __name__ == "__main__":
    run_command(main, Evaluation)
