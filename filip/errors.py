"""The one exception that a user's mistake may raise."""


class UserError(Exception):
    """Something a user can fix: the message says what was wrong, the value, where it came from, what to do.

    Commands print the message without a stack trace and exit with 2 (see :mod:`filip.command`). Anything
    else that escapes is a bug of ours and keeps its trace.
    """
