"""For all tests."""

import signal


def pytest_configure() -> None:
    """A shell ignores Ctrl-C in what it starts in the background, and what a test starts would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
