"""Fetch one image, in bounded time and memory.

img2dataset's own fetch has a timeout per read, so that a server sending a byte every few seconds holds a thread
forever, and reads a body of any size. Here the whole exchange has a deadline (a thread shuts its connections
down, from the first byte on, which also ends a header or a proxy that drips), and a body has a limit, also that of a
redirection. Errors that another attempt cannot fix are not retried.
A URL of a host that wants to be left alone is not asked for (``hosts``).
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache, partial
from typing import Any

from filip import __version__
from filip.data.fetching.access import PUBLIC, Access, Refused
from filip.data.fetching.hosts import DEAD_HOST, HOSTS, LOST, host_of, not_asked
from filip.data.fetching.outcomes import MAX_BYTES, TRANSIENT, opt_out

DEADLINE = 3  # times the timeout: from the first connection to the last byte, redirects included
BUSY = (429, 503)  # answers that may have Retry-After
CHUNK = 1 << 16
USER_AGENT = f"Mozilla/5.0 (X11; Linux x86_64) filip/{__version__} (compatible; downloads lists of images{{contact}})"


class _Deadlines:
    """Watchdog that shuts connections down when the deadline of the thread that opened them has passed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, tuple[float, list[socket.socket]]] = {}
        threading.Thread(target=self._watch, daemon=True, name="fetch-deadlines").start()

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Any:
        with self._lock:
            self._open[threading.get_ident()] = (time.monotonic() + seconds, [])
        try:
            yield
        finally:
            with self._lock:
                _, sockets = self._open.pop(threading.get_ident())
            for sock in sockets:
                sock.close()

    def left(self) -> float:
        """Return the seconds until this thread's deadline."""
        with self._lock:
            return self._open[threading.get_ident()][0] - time.monotonic()

    def add(self, sock: socket.socket) -> None:
        """Watch a connection through a duplicate, as TLS takes the descriptor out of the socket that it is given."""
        duplicate = sock.dup()
        with self._lock:
            self._open[threading.get_ident()][1].append(duplicate)

    def _watch(self) -> None:
        while True:
            time.sleep(0.25)
            now = time.monotonic()
            with self._lock:
                for when, sockets in self._open.values():
                    if now > when:
                        for sock in sockets:
                            with contextlib.suppress(OSError):
                                sock.shutdown(socket.SHUT_RDWR)


_deadlines_lock = threading.Lock()
_deadlines_by_process: dict[int, _Deadlines] = {}


def _deadlines() -> _Deadlines:
    """Return the watchdog of this process: a fork has none of its parent's threads, and all threads share one."""
    with _deadlines_lock:
        if os.getpid() not in _deadlines_by_process:
            _deadlines_by_process[os.getpid()] = _Deadlines()
        return _deadlines_by_process[os.getpid()]


@lru_cache(maxsize=10_000)
def _resolved(host: str, port: int, minute: int) -> list[Any]:
    """Return the addresses of a host, asked for once a minute; a failure is not kept."""
    return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)


def _connect(access: Access, address: tuple[str, int], timeout: float, *_: Any) -> socket.socket:
    """Connect to an allowed address, within this thread's deadline however many are dead."""
    problem: OSError = TimeoutError("timed out: no time left to connect")
    if HOSTS.is_dead(address):
        raise Refused(DEAD_HOST, f"not asked for, as {address[0]} does not answer")
    try:
        addresses = _resolved(*address, int(time.monotonic() // 60))
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            HOSTS.lost(address, LOST)
        raise
    for family, kind, protocol, _name, place in addresses:
        left = min(timeout, _deadlines().left())
        if left <= 0:
            break
        sock = None
        try:
            access.check_address(str(place[0]), address[0])
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(left)
            sock.connect(place)
            sock.settimeout(timeout)
            _deadlines().add(sock)
            HOSTS.reached(address)
            return sock
        except OSError as error:
            problem = error
            if sock:
                sock.close()
    if isinstance(problem, TimeoutError):
        HOSTS.lost(address)
    raise problem


@cache
def _trusted() -> ssl.SSLContext:
    """Return the certificates to trust, read once: to read them takes most of a connection's processor time."""
    return ssl.create_default_context()


def _connection(kind: Any, access: Access, *args: Any, **options: Any) -> Any:
    """Return a connection of http.client that connects, before a proxy's tunnel and before TLS, as _connect does."""
    connection = kind(*args, **options)
    connection._create_connection = partial(_connect, access)
    return connection


class _WebHandler(urllib.request.AbstractHTTPHandler):
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, access: Access = PUBLIC) -> None:
        super().__init__()
        self.access = access

    def http_open(self, request: urllib.request.Request) -> Any:
        return self._open(http.client.HTTPConnection, request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self._open(http.client.HTTPSConnection, request, context=_trusted())

    def _open(self, kind: Any, request: urllib.request.Request, **options: Any) -> Any:
        access = self.access
        if request.has_proxy() or getattr(request, "_tunnel_host", None):
            # a proxy may be private, and the host asked of it is checked by name
            access.check_name(urllib.parse.urlsplit(request.full_url).hostname or "")
            access = Access(private_hosts=True)
        connection: Any = partial(_connection, kind, access)
        return self.do_open(connection, request, **options)


class _FileHandler(urllib.request.FileHandler):
    def __init__(self, access: Access) -> None:
        self.access = access

    def file_open(self, request: urllib.request.Request) -> Any:
        self.access.check_file(urllib.request.url2pathname(request.selector))
        return super().file_open(request)


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()  # unread: urllib would read it into memory, whatever its size
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@cache
def _opener(access: Access) -> urllib.request.OpenerDirector:
    """Return an opener for HTTP and HTTPS (with the environment's proxies), also ``file:`` if a card names a folder."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _WebHandler(access),
        urllib.request.HTTPDefaultErrorHandler(),
        _RedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ]
    for handler in handlers + ([_FileHandler(access)] if access.folder is not None else []):
        opener.add_handler(handler)
    return opener


def fetch(
    url: str, timeout: float, retries: int, *, access: Access = PUBLIC
) -> tuple[bytes | None, str | None, str | None]:
    """Return an image's bytes, or "reason: detail" of the last attempt, and the host that wants to be left alone.

    It never raises and never hangs.
    """
    try:
        return _attempts(url, timeout, retries, access)
    except Exception as error:  # raised by readers of the headers
        return None, explain(error), None


def _attempts(url: str, timeout: float, retries: int, access: Access) -> tuple[bytes | None, str | None, str | None]:
    problem = "other: not tried"
    host = host_of(url)
    for attempt in range(retries + 1):
        if HOSTS.wait(host):
            return None, problem if attempt else not_asked(host), host
        started = time.monotonic()
        try:
            with HOSTS.asking(host, access.per_host), _deadlines().deadline(DEADLINE * timeout):
                started = time.monotonic()
                data, problem = _fetch_once(url, timeout, access)
            HOSTS.answered(host, started)
            if data is not None:
                return data, None, None
        except Exception as error:  # anything may be raised here; one URL must not stop a shard
            late = time.monotonic() - started > DEADLINE * timeout
            if attempt and getattr(getattr(error, "reason", None), "reason", None) == DEAD_HOST:
                break  # as the attempt before found
            problem = "timeout: too slow as a whole" if late else explain(error)
            if isinstance(error, urllib.error.HTTPError):
                answering = host_of(error.filename or url)  # after redirections
                if error.code not in BUSY:
                    HOSTS.answered(answering, started)
                elif HOSTS.refused(answering, _retry_after(error), started):
                    return None, problem, answering
        if problem.split(":")[0] not in TRANSIENT:
            break
    return None, problem, None


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Return the seconds that the answer asks for (a number or a date, RFC 9110, section 10.2.3), None if it does not.

    A 503 that does not ask is 0: a server that is down for one URL answers others.
    """
    header = error.headers.get("Retry-After", "")
    if header.isascii() and header.strip().isdigit():  # "²" is a digit to Python, but int() refuses it
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):  # the last two for dates out of range
        return None if error.code == 429 else 0.0


def _fetch_once(url: str, timeout: float, access: Access) -> tuple[bytes | None, str]:
    agent = USER_AGENT.format(contact=f"; +{access.contact}" if access.contact else "")
    request = urllib.request.Request(ascii_url(url), headers={"User-Agent": agent})
    started = time.monotonic()
    with _opener(access).open(request, timeout=timeout) as response:
        forbidding = opt_out(response.headers)
        if forbidding:
            return None, f"opted_out: by {forbidding}"
        promised = getattr(response, "length", None) or 0  # Content-Length, as http.client reads it
        if promised > MAX_BYTES:
            return None, f"too_many_bytes: {promised}"
        body, size = io.BytesIO(), 0
        read_some = getattr(response, "read1", response.read)  # a file: response has no read1
        while chunk := read_some(CHUNK):
            size += body.write(chunk)
            if size > MAX_BYTES:
                return None, f"too_many_bytes: more than {MAX_BYTES}"
            if time.monotonic() - started > DEADLINE * timeout:
                return None, "timeout: too slow as a whole"
        if time.monotonic() - started > DEADLINE * timeout:
            return None, "timeout: too slow as a whole"  # its deadline ended the body
        if size < promised:
            return None, f"cut_off: {size} of {promised} bytes"
        data = body.getvalue()
        if response.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
            with contextlib.suppress(zlib.error):  # of a server that breaks its promise
                data = zlib.decompressobj(zlib.MAX_WBITS + 32).decompress(data, MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                return None, f"too_many_bytes: more than {MAX_BYTES}"
        return data, ""


def ascii_url(url: str) -> str:
    """Return a URL as lists hold it (``/café.jpg``) in the form that HTTP takes; quoted parts stay as they are."""
    if url.isascii():
        return url
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    safe = "%/:=&?~#+!$,;'@()*[]"
    path, query = (urllib.parse.quote(part, safe=safe) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def explain(error: BaseException) -> str:
    """Return an exception of urllib as ``"reason: detail"``."""
    detail = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{_reason(error, detail)}: {detail}"


def _reason(error: BaseException, detail: str) -> str:
    if isinstance(error, urllib.error.HTTPError):
        if "infinite loop" in detail:
            return "redirect_loop"
        if "is not allowed" in detail:  # urllib follows redirections only to http and https
            return "forbidden_scheme"
        return "http_5xx" if error.code >= 500 else f"http_{error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, Refused):
        return cause.reason
    if isinstance(cause, TimeoutError) or "timed out" in detail:
        return "timeout"
    if isinstance(cause, socket.gaierror):
        return "dns"
    if "SSL" in type(cause).__name__ or "CERTIFICATE" in detail.upper():
        return "tls"
    if isinstance(error, http.client.IncompleteRead):
        return "cut_off"
    if isinstance(error, http.client.InvalidURL | UnicodeError | ValueError) or "unknown url type" in detail:
        return "malformed_url"
    if isinstance(cause, FileNotFoundError) or "No such file" in detail:
        return "missing_file"
    if isinstance(cause, OSError | http.client.HTTPException):
        return "connection"
    return "other"
