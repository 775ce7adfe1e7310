"""Run one check here: ``python -m bench.gpu.run NAME DEVICE full|tiny FOLDER`` writes FOLDER/finding.json."""

import importlib
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from bench.gpu.finding import FAIL, Finding, Place
from filip.files import write_json


def main(name: str, device: str, sizes: str, folder: str) -> None:
    place = Place(torch.device(device), sizes == "tiny", Path(folder))
    try:
        found: Finding = importlib.import_module(f"bench.gpu.{name}").check(place)
    except Exception as error:  # whatever it is, the report has it and the next check runs
        traceback.print_exc()
        found = Finding(FAIL, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    write_json(place.folder / "finding.json", asdict(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
