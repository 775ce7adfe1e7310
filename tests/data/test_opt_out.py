"""Headers by which a server forbids the use of an image for training."""

from email.message import Message

import pytest

from filip.data.fetching.opt_out import opt_out


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([("X-Robots-Tag", "noai")], "X-Robots-Tag"),
        ([("X-Robots-Tag", "noarchive"), ("X-Robots-Tag", "NoImageAI, nofollow")], "X-Robots-Tag"),
        ([("X-Robots-Tag", "img2dataset: noindex")], "X-Robots-Tag"),
        ([("X-Robots-Tag", "*: noai")], "X-Robots-Tag"),
        ([("X-Robots-Tag", "googlebot: noai, noindex")], None),
        ([("X-Robots-Tag", "unavailable_after: 25 Jun 2030 15:00:00 PST")], None),
        ([("X-Robots-Tag", "noai, unavailable_after: 25 Jun 2030 15:00:00 PST")], "X-Robots-Tag"),
        ([("TDM-Reservation", "1")], "tdm-reservation"),
        ([("tdm-reservation", "0")], None),
        ([], None),
    ],
)
def test_headers_that_forbid_the_use_of_an_image(headers: list[tuple[str, str]], found: str | None) -> None:
    message = Message()
    for name, value in headers:
        message[name] = value
    assert opt_out(message, "img2dataset", {"noai", "noimageai", "noindex", "noimageindex"}) == found
    assert opt_out(message, "img2dataset", ()) is None
