"""Load models from the Hugging Face hub: check once and briefly whether it can be reached.

Without a network each library requests each file of a model six times, with pauses in between: 25 to 50 seconds and
dozens of warnings. So the hub is asked here first, and if it does not answer, the libraries look only in their caches.
"""

from __future__ import annotations

import functools
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from filip.common.errors import UserError, plain
from filip.common.progress import say

WAIT = 5.0  # seconds for an answer
SIGN = 1.5  # seconds after which a line names the wait


@contextmanager
def hub_asked(local: bool = False) -> Iterator[None]:
    """Run a block that may download a model; ``local``: it does not.

    A UserError in the block also mentions a hub that cannot be reached.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        local = True
    reason = None if local or constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    if reason is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{error} ({constants.ENDPOINT} cannot be reached: {reason}; what was downloaded before can be loaded, and "
            "files or folders that were copied here)"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = False


@functools.cache
def unreachable(address: str) -> str | None:
    """Return why nothing answers at an address within :data:`WAIT` seconds; None if something does."""
    reasons = [f"no answer within {WAIT:g} seconds"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=WAIT).close()
            reasons.clear()
        except urllib.error.HTTPError:  # this is an answer, too
            reasons.clear()
        except (OSError, ValueError) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, ssl.SSLError):  # somebody is there; libraries bring their certificates
                reasons.clear()
            elif not isinstance(cause, TimeoutError):
                reasons[:] = [plain(cause) if isinstance(cause, Exception) else str(cause)]

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no time-out
    sign = threading.Timer(SIGN, say, [f"waiting for {address}"])
    sign.daemon = True
    thread.start()
    sign.start()
    thread.join(WAIT)
    sign.cancel()
    return reasons[0] if reasons else None
