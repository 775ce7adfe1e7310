"""The live explorer: exact scores, nothing outside of what it was given, uploads within bounds, this machine alone."""

import base64
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from playwright.sync_api import expect
from starlette.testclient import TestClient

from filip.errors import UserError
from filip.eval.scorer import load_scorer
from filip.explore import app
from filip.explore.app import application
from filip.explore.gallery import Gallery, load_viewers
from filip.explore.names import encode_query
from filip.explore.pictures import open_pictures
from filip.explore.search import GallerySearch
from filip.explore.serve import Serve, check, listen
from tests.eval.miniature import picture, write_model
from tests.explore.conftest import CAPTIONS, SERVED, Prepared
from tests.support.browser import NoBrowser, chromium
from tests.support.shards import encoded

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def search(prepared: Prepared) -> GallerySearch:
    viewers = load_viewers(prepared.models, ["CLIP", "FILIP"], "cpu")
    return GallerySearch(Gallery.of(viewers, open_pictures("demo_scenes_new", str(prepared.folder), None)))


@pytest.fixture
def client(search: GallerySearch) -> TestClient:
    return TestClient(application(search), base_url="http://127.0.0.1:8768")


def test_any_text_has_exactly_the_scores_of_the_tables(client: TestClient, prepared: Prepared) -> None:
    result = client.get("/search", params={"text": SERVED}).json()["models"]
    for number, path in enumerate(prepared.models):
        scorer = load_scorer(path)
        pixels = torch.stack([scorer.transform(image) for image in prepared.pictures])
        exact = scorer.similarity(scorer.encode_images(pixels), encode_query(scorer, SERVED)).t2i[:, 0]
        assert result[number]["order"] == exact.argsort(descending=True, stable=True).tolist()
        assert result[number]["scores"] == exact[result[number]["order"]].tolist()
        assert result[number]["total"] == len(CAPTIONS) and result[number]["tokens"][0] == "[BOS]"
        maps = [np.frombuffer(base64.b64decode(m), "<f4").reshape(16, -1) for m in result[number]["maps"]]
        if scorer.token_wise:
            assert [m.max(0)[result[number]["counted"]].mean() for m in maps] == pytest.approx(
                result[number]["scores"], abs=1e-6
            )
    seen = client.get("/look", params={"text": SERVED, "images": "3,0"}).json()["models"]
    for model, looked in zip(result, seen, strict=True):
        assert [model["order"][one["rank"] - 1] for one in looked] == [3, 0]
        assert [model["scores"][one["rank"] - 1] for one in looked] == [one["score"] for one in looked]


def test_an_uploaded_picture_is_scored_like_any_other(client: TestClient, prepared: Prepared) -> None:
    answer = client.post("/upload", content=encoded(prepared.pictures[3])).json()
    assert base64.b64decode(answer["thumbnail"])[8:12] == b"WEBP"
    same = client.get("/look", params={"text": SERVED, "images": f"{answer['image']},3"}).json()["models"]
    for yours, known in same:
        assert yours["score"] == pytest.approx(known["score"], abs=1e-6)
        assert abs(yours["rank"] - known["rank"]) <= 1, "the last bit decides between a picture and its copy"
    texts = client.get("/texts", params={"image": answer["image"], "count": 3}).json()["models"]
    assert [len(model) for model in texts] == [3, 3] and texts[0][0][0] in CAPTIONS
    for _ in range(25):
        client.post("/upload", content=encoded(picture(9)))
    gone = client.get("/look", params={"text": SERVED, "images": answer["image"]})
    assert gone.status_code == 422 and "no image" in gone.json()["error"]


def test_uploads_are_bounded_in_bytes_pixels_and_formats(search: GallerySearch) -> None:
    client = TestClient(application(search, max_bytes=50_000, max_pixels=10_000), base_url="http://localhost")
    large = client.post("/upload", content=b"\xff\xd8" + bytes(60_000))
    assert large.status_code == 413 and "50,000" in large.json()["error"]
    for data, complaint in (
        (encoded(Image.new("RGB", (200, 200))), "200 x 200 pixels"),
        (encoded(Image.new("1", (9000, 1))), "too long and narrow"),
        (encoded(Image.new("1", (20_000, 20_000))), "more than 10,000"),  # more than Pillow opens
        (encoded(Image.new("RGB", (20, 20)), "EPS"), "not an image"),  # Pillow would start Ghostscript
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (encoded(picture(1))[:60], "not an image"),
        (b"", "not an image"),
    ):
        answer = client.post("/upload", content=data)
        assert answer.status_code == 422 and complaint in answer.json()["error"], answer.json()
    assert client.get("/upload").status_code == 405


def test_of_parallel_uploads_one_at_a_time_is_in_memory(search: GallerySearch, monkeypatch: pytest.MonkeyPatch) -> None:
    held, most = 0, 0

    def decode(*arguments: object) -> Image.Image:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return picture(1)

    def encode(image: Image.Image) -> tuple[str, bytes]:
        nonlocal held
        time.sleep(0.05)  # while others would decode
        held -= 1
        return "u", b""

    monkeypatch.setattr(app, "read_image", decode)
    monkeypatch.setattr(search, "upload", encode)
    served = application(search)

    def post(_: int) -> int:
        return TestClient(served, base_url="http://localhost").post("/upload", content=b"x").status_code

    with ThreadPoolExecutor(6) as visitors:
        assert list(visitors.map(post, range(6))) == [200] * 6
    assert most == 1


@pytest.mark.parametrize(
    "path",
    ["/../secret.txt", "/thumbnail/../secret.txt", "/thumbnail/..%2fsecret.txt", "/secret.txt", "/thumbnail/6",
     "/thumbnail/-1", "/thumbnail/99", "/thumbnail/²", "/thumbnail/1e3", f"/thumbnail/{'9' * 5000}",
     "/thumbnail/a.png", "/thumbnail//etc/passwd", "/static/app.py", "/docs"],
)  # fmt: skip
def test_no_path_leads_to_a_file(client: TestClient, path: str) -> None:
    assert client.get("/thumbnail/5").headers["content-type"] == "image/webp"
    assert client.get(path).status_code == 404


def test_a_folder_is_never_left(tmp_path: Path) -> None:
    inside = tmp_path / "photos"
    (inside / ".hidden").mkdir(parents=True)
    picture(1).save(inside / "a.png")
    picture(2).save(tmp_path / "secret.png")
    picture(3).save(inside / ".hidden" / "h.png")
    (tmp_path / "secret.txt").write_text("a password")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "up").symlink_to(tmp_path)
    (inside / "a.txt").symlink_to(tmp_path / "secret.txt")
    results = list(open_pictures(str(inside), None, None))
    assert [(one.key, one.captions) for one in results] == [("a.png", [])]


def test_questions_without_sense_get_a_sentence(client: TestClient) -> None:
    for path in ("/search", "/search?text=", "/search?text=" + "x" * 1001, "/look?text=a", "/look?text=a&images=9",
                 "/look?text=a&images=-1", "/look?text=a&images=²", f"/look?text=a&images={'0,' * 70}0",
                 "/texts?image=0&count=x", "/texts?image=nobody"):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == 422 and answer.json()["error"], path


def test_only_this_machine_and_the_own_page_are_answered(search: GallerySearch) -> None:
    rebound = TestClient(application(search), base_url="http://evil.example:8768")
    assert rebound.get("/").status_code == 421 and rebound.get("/search?text=a").status_code == 421
    own = TestClient(application(search), base_url="http://127.0.0.1:8768")
    assert own.post("/upload", content=b"", headers={"Origin": "http://evil.example"}).status_code == 403
    assert own.get("/search?text=a", headers={"Origin": "http://127.0.0.1:8768"}).status_code == 200
    front = own.get("/")
    assert "connect-src 'self'" in front.text and front.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("value", ["[", "http://[", "a]b", "http://[::1"])
def test_headers_that_are_no_addresses_are_no_errors(search: GallerySearch, value: str) -> None:
    odd = TestClient(application(search), base_url="http://127.0.0.1:8768", raise_server_exceptions=False)
    assert odd.get("/", headers={"origin": value}).status_code == 403
    assert odd.get("/", headers={"host": value}).status_code < 500


def test_beyond_this_machine_there_is_no_answer_without_the_token(search: GallerySearch) -> None:
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(UserError, match="token="):
            check(Serve(models=["m"], images="i", host=host))
        check(Serve(models=["m"], images="i", host=host, token=TOKEN))
    with pytest.raises(UserError, match="16 or more"):
        check(Serve(models=["m"], images="i", token="secret"))
    check(Serve(models=["m"], images="i"))
    client = TestClient(application(search, TOKEN), base_url="http://example.org", follow_redirects=True)
    for path in ("/", "/search?text=a", "/thumbnail/0", "/?token=wrong"):
        assert client.get(path).status_code == 401
    assert client.post("/upload", content=b"").status_code == 401
    assert client.get("/search?text=a", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    opened = client.get(f"/?token={TOKEN}")
    assert opened.status_code == 200 and TOKEN not in str(opened.url)
    assert client.get("/thumbnail/0").status_code == 200, "the cookie has it"


def test_a_port_that_is_taken_is_said_before_anything_is_encoded() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="choose another port="):
        assert taken.getsockname()[0] == "127.0.0.1" and taken.family == socket.AF_INET
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.slow
def test_the_command_serves_a_folder_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    picture(1).save(tmp_path / "photos" / "a.png")
    model = write_model(tmp_path / "m.safetensors")
    command = [
        sys.executable,
        "-m",
        "filip.explore.serve",
        f"models=[{model}]",
        f"images={tmp_path / 'photos'}",
        "port=0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            line = next(line for line in running.stderr if "open http" in line)
            address = line.split("open ")[1].split(" ")[0]
            assert address.startswith("http://127.0.0.1:") and line.startswith("1 images")
            with urllib.request.urlopen(f"{address}search?text=a+cat", timeout=60) as answer:
                assert json.load(answer)["models"][0]["order"] == [0]
        finally:
            running.terminate()
            running.wait(60)


@pytest.fixture
def address(search: GallerySearch) -> Iterator[str]:
    connection = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application(search), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [connection]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{connection.getsockname()[1]}/"
    server.should_exit = True
    thread.join(60)


@pytest.mark.system
def test_the_live_page_takes_any_text_and_a_picture(address: str, tmp_path: Path) -> None:
    picture(40, 64).save(tmp_path / "mine.png")
    try:
        with chromium() as browser:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            complaints, requests = [], []
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(address)
            expect(page.locator(".card").first).to_be_visible(timeout=60_000)
            page.fill("#text", SERVED)
            page.click("#go")
            expect(page.locator("#chips")).to_contain_text("caption", timeout=60_000)
            expect(page.locator(".model")).to_have_count(2)
            page.set_input_files("#upload input", str(tmp_path / "mine.png"))
            expect(page.locator(".badge")).to_have_text(["yours", "yours"], timeout=60_000)
            expect(page.locator(".large img").first).to_have_attribute("alt", "your picture")
            page.locator(".fits summary").last.click()
            expect(page.locator(".model:last-child .fits li")).to_have_count(5)
            page.fill("#text", "x")
            assert complaints == [] and all(url.startswith((address, "data:")) for url in requests)
            (tmp_path / "no.png").write_bytes(b"no image")
            page.set_input_files("#upload input", str(tmp_path / "no.png"))
            expect(page.locator("#message")).to_contain_text("not an image", timeout=60_000)
    except NoBrowser as error:
        pytest.skip(str(error))
