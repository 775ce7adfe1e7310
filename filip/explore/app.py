"""Serve the explorer as a web application: one page, and the few requests that it makes.

Nothing is addressed by path: a thumbnail is the n-th image that was read at the start, so that no request can reach
another file. Uploads are read up to a bound and opened as an image within the bounds of
:func:`filip.sets.pictures.read_image`. A browser on this machine may be sent here by any web page, so requests for
another host name (DNS rebinding) and from another origin are refused.
"""

from __future__ import annotations

import asyncio
import base64
import io
import secrets
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from filip.errors import UserError
from filip.explore.export import common_data, page
from filip.explore.search import GallerySearch
from filip.sets.pictures import MAX_BYTES, MAX_PIXELS, read_image

MAX_TEXT = 1000  # characters
MAX_LOOKS = 64  # images per request
COOKIE = "filip_explorer"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def application(
    search: GallerySearch, token: str = "", max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> Starlette:
    """Build the application. token: visitors who do not show it (``?token=``, cookie or bearer token) are refused; "" =
    none is needed, and only requests to a loopback name are answered."""
    gallery = search.gallery
    # one upload at a time, since it may take hundreds of megabytes, and in one thread, which uses them again
    seeing = ThreadPoolExecutor(1)
    front = page({**common_data(gallery), "live": True, "opening": 0}, live=True)

    async def index(request: Request) -> Response:
        return HTMLResponse(front)

    async def picture(request: Request) -> Response:
        digits = request.path_params["number"]
        number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else -1
        if not 0 <= number < len(gallery.thumbnails):
            return _refusal(HTTPStatus.NOT_FOUND, f"there is no image {digits[:20]}")
        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(gallery.thumbnails[number], media_type="image/webp", headers=headers)

    async def find(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(search.search, _text(request)))

    async def look(request: Request) -> Response:
        images = request.query_params.get("images", "").split(",")
        if len(images) > MAX_LOOKS:
            raise UserError(f"{len(images)} images: at most {MAX_LOOKS} at a time")
        return JSONResponse(await run_in_threadpool(search.look, _text(request), images))

    async def texts(request: Request) -> Response:
        image, count = request.query_params.get("image", ""), request.query_params.get("count", "5")
        if not (count.isascii() and count.isdecimal() and len(count) < 3):
            raise UserError(f"count={count[:40]} should be a number below 100")
        return JSONResponse(await run_in_threadpool(search.texts, image, int(count)))

    def see(data: bytes) -> tuple[str, bytes]:
        return search.upload(read_image(io.BytesIO(data), max_pixels))

    async def upload(request: Request) -> Response:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > max_bytes:
                return _refusal(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the image has more than {max_bytes:,} bytes: make it smaller"
                )
        name, small = await asyncio.get_running_loop().run_in_executor(seeing, see, bytes(data))
        return JSONResponse({"image": name, "thumbnail": base64.b64encode(small).decode("ascii")})

    return Starlette(
        routes=[
            Route("/", index),
            Route("/thumbnail/{number}", picture),
            Route("/search", find),
            Route("/look", look),
            Route("/texts", texts),
            Route("/upload", upload, methods=["POST"]),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=_guard(token))],
        exception_handlers={UserError: _user_error, ClientDisconnect: _gone},
    )


Next = Callable[[Request], Awaitable[Response]]


def _guard(token: str) -> Callable[[Request, Next], Awaitable[Response]]:
    """Check who may ask, and set the security headers of every answer."""

    async def guard(request: Request, answer: Next) -> Response:
        refusal = _refused(request, token)
        if refusal is not None:
            return refusal
        shown = request.query_params.get("token")
        if token and shown is not None and request.method == "GET" and request.url.path == "/":
            # The token moves from the address into a cookie, which no script and no other site sees.
            response: Response = RedirectResponse("./", HTTPStatus.SEE_OTHER)
            response.set_cookie(COOKIE, shown, httponly=True, samesite="strict")
            return response
        response = await answer(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["X-Frame-Options"] = "DENY"
        return response

    return guard


def _refused(request: Request, token: str) -> Response | None:
    if not token and _host(request) not in LOOPBACK:
        return _refusal(HTTPStatus.MISDIRECTED_REQUEST, "this explorer answers to 127.0.0.1, localhost and ::1 only")
    origin = request.headers.get("origin")
    if origin is not None and origin.rpartition("://")[2] != request.headers.get("host"):
        return _refusal(HTTPStatus.FORBIDDEN, "this explorer answers to its own page only")
    if token and not any(secrets.compare_digest(given.encode(), token.encode()) for given in _tokens(request)):
        return _refusal(HTTPStatus.UNAUTHORIZED, "this explorer needs its token: open it as /?token=…")
    return None


def _host(request: Request) -> str | None:
    try:
        return request.url.hostname
    except ValueError:  # older Starlettes, which pyproject.toml allows, raise it for "Host: ["
        return None


def _tokens(request: Request) -> Iterable[str]:
    yield request.query_params.get("token", "")
    yield request.cookies.get(COOKIE, "")
    yield request.headers.get("authorization", "").removeprefix("Bearer ")


def _text(request: Request) -> str:
    text = request.query_params.get("text", "").strip()
    if not text or len(text) > MAX_TEXT:
        raise UserError(f"a text has 1 to {MAX_TEXT:,} characters, this one {len(text):,}")
    return text


def _refusal(status: HTTPStatus, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, int(status))


def _user_error(request: Request, error: Exception) -> Response:
    return _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens there."""
    return host in LOOPBACK
