"""The one exception that a user's mistake may raise, and what it says of an error behind it."""


class UserError(Exception):
    """Something a user can fix: the message says what was wrong, the value, where it came from, what to do.

    Commands print the message without a stack trace and exit with 2 (see :mod:`filip.command`). Anything
    else that escapes is a bug of ours and keeps its trace.
    """


def first_line(error: Exception) -> str:
    """Of its message, for a sentence of ours; the name of its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
