"""Define the one exception for a user's mistake, and words for the error behind it."""

from __future__ import annotations

import difflib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType


class UserError(Exception):
    """An error that a user can fix: the message has the fault, the value, its origin and the remedy.

    Commands print the message without a stack trace and exit with 2 (see :mod:`filip.cli.command`). Anything
    else that escapes is a bug of ours and keeps its trace.
    """

    exit_code = 2


class DamagedFileError(UserError):
    """A file that is not what was written: a disk or a network is to blame, and the same command may go on later."""

    exit_code = 74


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, for a sentence of ours; the name of its class if it is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def plain(error: Exception) -> str:
    """Return in a few words why a file cannot be read, without the number and the path that Python puts there."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start})"
    return getattr(error, "strerror", None) or first_line(error)


def counted(counts: Mapping[str, int]) -> str:
    """Return ``12 too_small, 1 no_caption``, the largest first; "none" if nothing was counted."""
    largest = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {name}" for name, count in largest) or "none"


def did_you_mean(typed: str, names: Iterable[str], count: int = 1) -> str:
    """Return ``; did you mean 'index'?`` with at most ``count`` names of ``known`` that are near; "" for none."""
    near = nearest(typed, names, count)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def one_of(typed: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'index'? There are index, out``, or ``; there are index, out`` if no name is similar."""
    names = list(known)
    near = did_you_mean(typed, names)
    return f"{near} There are {', '.join(names)}" if near else f"; there are {', '.join(names)}"


def nearest(typed: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Return at most ``count`` names that differ little from the typed one, or begin with it; the nearest first."""
    names = list(known)
    folded = {name.lower(): name for name in reversed(names)}
    matches = difflib.get_close_matches(typed, names, count)
    matches = matches or [folded[name] for name in difflib.get_close_matches(typed.lower(), folded, count)]
    return matches or [name for name in names if len(typed) > 2 and name.startswith(typed)][:count]


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End the process quietly if the reader of its output, such as ``head``, has closed the pipe."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        of_output = select.poll()
        of_output.register(sys.stdout.fileno(), 0)  # errors are printed in any case
        if not any(event & select.POLLERR for _, event in of_output.poll(0)):
            raise  # another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for text that is still buffered
        sys.exit(0)


@contextmanager
def stopped_by_ctrl_c(ends: bool = False) -> Iterator[None]:
    """Let Ctrl-C end the process at once, with one sentence and code 130, unless somebody handles it already.

    Nothing is unwound, as after ``kill -9``: no library can answer with an error of its own, and no pool is waited for.
    ends: the process ends after this. Ctrl-C then comes too late, and the process keeps its own code.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() == process:  # and not a worker that was forked from it
            import multiprocessing

            os.write(2, b"\nstopped; the same command continues\n")
            for child in multiprocessing.active_children():
                child.kill()
        os._exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is stop:
            # Python would give SIGINT back to the system while it ends, unless it is ignored: code -2, without a word.
            signal.signal(signal.SIGINT, signal.SIG_IGN if ends else signal.default_int_handler)
