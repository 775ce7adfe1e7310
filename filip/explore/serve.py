"""Serve the explorer for any text and any picture: ``filip explore serve models=[clip.safetensors,filip.safetensors]
labels=[CLIP,FILIP] images=photos``, then open http://127.0.0.1:8768.

It listens only on this machine. With ``token=`` it may listen elsewhere (``host=0.0.0.0``), and visitors without it
see nothing; the connection is not encrypted, so put it behind something that is, or go through ``ssh -L``.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import uvicorn

from filip.command import option, run_command
from filip.errors import UserError
from filip.explore.app import application, is_loopback
from filip.explore.gallery import GalleryOptions
from filip.explore.search import GallerySearch, warm
from filip.progress import say
from filip.sets.pictures import MAX_BYTES, MAX_PIXELS

SHORTEST_TOKEN = 16


@dataclass
class Serve(GalleryOptions):
    host: str = option("127.0.0.1", "address to listen on; beyond this machine only with token=")
    port: int = option(8768, "port to listen on; 0 = any that is free", at_least=0, at_most=65535)
    token: str = option(
        "", "token that a visitor has to show, at least 16 characters; needed to listen beyond this machine"
    )
    max_bytes: int = option(MAX_BYTES, "largest picture that can be uploaded, in bytes", at_least=1)
    max_pixels: int = option(MAX_PIXELS, "largest picture that can be uploaded, in pixels", at_least=1)


def main(config: Serve) -> None:
    """Serve the explorer: any text, any uploaded picture, the images of a folder or card."""
    check(config)
    # before minutes of encoding, in case the port is taken
    with listen(config.host, config.port) as connection:
        gallery = config.gallery()
        search = GallerySearch(gallery)
        warm(search)
        app = application(search, config.token, config.max_bytes, config.max_pixels)
        host, port = connection.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        query = "?token=…" if config.token else ""
        say(f"{len(gallery.keys):,} images; open http://{shown}:{port}/{query} (Ctrl-C ends it)")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
        server.run(sockets=[connection])


def check(config: Serve) -> None:
    """Raise UserError for an address beyond this machine without a token, and for a token that can be guessed."""
    if config.token and len(config.token) < SHORTEST_TOKEN:
        raise UserError(
            f"token= has {len(config.token)} characters; take {SHORTEST_TOKEN} or more, e.g. "
            "`python -c 'import secrets; print(secrets.token_urlsafe())'`"
        )
    if not config.token and not is_loopback(config.host):
        raise UserError(
            f"host={config.host} can be reached from other machines: give a token= that visitors have to show, or "
            "leave host= out and reach it through `ssh -L 8768:127.0.0.1:8768`"
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises UserError if the address is not available."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port=") from error


if __name__ == "__main__":
    run_command(main, Serve)
