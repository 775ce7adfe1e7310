"""Measure how many of the ten best pictures of all patches a search lists: a figure of docs/search.md.

    python -m bench.search_order stamps=stamps     # collages of cut-out photographs, as in bench/photographs.py

It takes two CPU minutes.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.photographs import NUMBERS, collage, read_cut_outs
from filip.command import MISSING, option, run_command
from filip.index.build import Build, scorer_of, up_to_date
from filip.search.ranking import RANKED_AGAIN, query_of, rank

THINGS = (
    "apple cat rocket lamp motorcycle moon woman man hat bus flower book eye star robot house fish heart bird snake"
)


@dataclass
class SearchOrder:
    stamps: str = option(MISSING, "folder into which the package was unpacked")
    count: int = option(5000, "pictures", at_least=10)
    model: str = option("emoji", "a token-wise model")


def main(study: SearchOrder) -> None:
    """Print the mean over queries, with none, 100 and the default number of pictures read again."""
    cut_outs = read_cut_outs(Path(study.stamps))
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        for index in range(study.count):
            collage(cut_outs, NUMBERS[index % len(NUMBERS)], index)[0].save(photos / f"{index:05}.png")
        exact = Build(study.model, str(photos), f"{folder}/exact", dtype="float32", pool=1, fit="pad", device="cpu")
        usual = Build(study.model, str(photos), f"{folder}/usual", fit="pad", device="cpu")
        scorer = scorer_of(exact)
        whole, averages = up_to_date(exact, scorer), up_to_date(usual, scorer)
        for again in (0, 100, RANKED_AGAIN):
            same = []
            for thing in THINGS.split():
                query = query_of(scorer, f"a {thing}")
                best = [
                    {hit.path for hit in rank(index, scorer, query, again=again).hits[:10]}
                    for index in (whole, averages)
                ]
                same.append(len(best[0] & best[1]))
            print(f"again={again}: {statistics.mean(same):.1f} of the ten best, at least {min(same)}")


if __name__ == "__main__":
    run_command(main, SearchOrder)
