"""Fetch OPUS-MT models for back-translation from the Hugging Face hub or a mirror of it.

filip data fetch_translation pivots=[de,ru] out=models/opus-mt

Two models per pivot, about 300 MB each. huggingface_hub fetches them and continues a file that was cut off; each file
is compared with the checksum that the hub states. The models are then converted for CTranslate2;
``back_translation.models`` names the folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.command import MISSING, option, run_command
from filip.data.engines.marian import ready_folder
from filip.errors import UserError
from filip.hub import unreachable
from filip.progress import track

PIECE = 1 << 20
NEEDED = ("config.json", "vocab.json", "source.spm", "target.spm", "tokenizer_config.json")
OPTIONAL = ("generation_config.json",)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first one found is used


@dataclass
class FetchConfig:
    pivots: list[str] = option(MISSING, "pivot languages, e.g. [de,ru]")
    out: str = option(
        MISSING,
        "folder of the models: one folder for each direction, OUT/en-de and OUT/de-en",
        writes="folder",
    )
    hub: str | None = option(
        None, "a mirror with the hub's layout; null = HF_ENDPOINT, or https://huggingface.co"
    )
    name: str = option("Helsinki-NLP/opus-mt-{source}-{target}", "name of the models on the hub")
    revision: str = option("main", "branch, tag or commit")
    convert: bool = option(
        True, "convert for CTranslate2 now (needs transformers and torch), not on first use"
    )


def main(config: FetchConfig) -> None:
    """Fetch OPUS-MT models for the engine marian: with progress and checksums, and continuing after an interruption."""
    for pivot in config.pivots:
        for source, target in (("en", pivot), (pivot, "en")):
            folder = Path(config.out) / f"{source}-{target}"
            fetch_model(config.hub, config.name.format(source=source, target=target), config.revision, folder)
            if config.convert:
                ready_folder(folder, pivot)
    print(
        f"{config.out}: back_translation: {{engine: marian, pivots: {config.pivots}, models: {config.out}}}"
    )


def fetch_model(hub: str | None, name: str, revision: str, folder: Path) -> None:
    """Fetch the files of a model into ``folder``. Raises UserError if that is impossible."""
    import huggingface_hub

    place = (hub or huggingface_hub.constants.ENDPOINT).rstrip("/")
    if (reason := unreachable(place)) is not None:
        raise UserError(
            f"cannot ask {place} for {name}: {reason}. Where this machine has no network, fetch on another and copy "
            "the folder"
        )
    try:
        about = huggingface_hub.HfApi(endpoint=place).model_info(name, revision=revision, files_metadata=True)
        for file in track(_wanted(about.siblings or [], f"{place}/{name}"), f"fetch {name}", "files"):
            _fetch_file(huggingface_hub, file, name, about.sha, folder, place)
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise UserError(f"{place} has no model {name}") from error
    except huggingface_hub.errors.RevisionNotFoundError as error:
        raise UserError(f"{place}/{name} has no revision {revision}") from error
    except (OSError, huggingface_hub.errors.HfHubHTTPError, ValueError) as error:
        raise UserError(
            f"cannot fetch {name} from {place}: {error}. What has come is kept: run the same command again to continue"
        ) from error


def _wanted(files: list[Any], model: str) -> list[Any]:
    """Return the files of a model that translation needs. Raises UserError if one is missing."""
    by_name = {file.rfilename: file for file in files}
    weights = next((path for path in WEIGHTS if path in by_name), None)
    missing = [path for path in NEEDED if path not in by_name] + ([] if weights else [" or ".join(WEIGHTS)])
    if missing:
        raise UserError(f"{model} has no {', '.join(missing)}: it is not an OPUS-MT model for transformers")
    return [by_name[path] for path in (*NEEDED, *OPTIONAL, str(weights)) if path in by_name]


def _fetch_file(hub: Any, file: Any, name: str, revision: str | None, folder: Path, endpoint: str) -> None:
    """Fetch one file unless it is there completely. Raises UserError if its checksum is not the hub's."""
    path, wanted = folder / file.rfilename, file.lfs.sha256 if file.lfs else file.blob_id
    if path.is_file() and _checksum(path, large=bool(file.lfs)) == wanted:
        return
    hub.hf_hub_download(
        name,
        file.rfilename,
        revision=revision,
        local_dir=folder,
        endpoint=endpoint,
        force_download=path.exists(),
    )
    if (found := _checksum(path, large=bool(file.lfs))) != wanted:
        path.unlink()
        raise UserError(
            f"{endpoint}/{name}/{file.rfilename}: its checksum is {found} and not {wanted}; run the same command again"
        )


def _checksum(path: Path, large: bool) -> str:
    """Return the SHA-256 of a large file, or git's SHA-1 of a small one, as the hub states them."""
    found = hashlib.sha256() if large else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as opened:
        while piece := opened.read(PIECE):
            found.update(piece)
    return found.hexdigest()


if __name__ == "__main__":
    run_command(main, FetchConfig)
