"""Pictures of what models see, one command for all kinds.

    filip eval picture kind=alignment model=M root=DIR data=[…] out=sheet.png      # a token's index on each patch
    filip eval picture kind=alignment model=M others=[…] root=DIR data=[…] out=side.png    # of several models
    filip eval picture kind=scenes models=[…] labels=[…] root=DIR out=scenes.png   # where each name is seen in a scene

``filip eval picture kind=KIND --help`` lists the options of a kind.
"""

from __future__ import annotations

import sys

from filip.cli.command import run_command
from filip.eval.pictures import alignment, scenes
from filip.eval.pictures.drawing import PictureOptions

DRAWN_BY = {alignment.AlignmentSheet: alignment.draw, scenes.SceneSheet: scenes.draw}


def main(config: PictureOptions) -> None:
    """Draw which token each patch is most similar to, or scenes."""
    DRAWN_BY[type(config)](config)  # type: ignore[operator]


def schema_of(arguments: list[str]) -> type[PictureOptions]:
    """Return the options of the kind that the arguments name; those of every kind if none has that name."""
    kinds = {schema.__module__.rpartition(".")[2]: schema for schema in DRAWN_BY}
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("kind=")]
    return kinds.get(named[-1] if named else "alignment", PictureOptions)


def draw(arguments: list[str]) -> None:
    """Draw the picture that the command line asks for. If the kind does not exist, nothing else is looked at."""
    schema = schema_of(arguments)
    if schema is PictureOptions:
        arguments = [*(argument for argument in arguments if argument.startswith("kind=")), "out=p.png"]
    run_command(main, schema, argv=arguments)


if __name__ == "__main__":
    draw(sys.argv[1:])
