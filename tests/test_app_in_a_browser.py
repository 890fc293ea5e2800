"""The web page as a person uses it, in headless Chromium: paint, choose, compare, take back, save, go wrong.

Needs the extras `app` and `dev` and a Chromium (CHROMIUM names one that is not in the PATH); .ci/run installs Debian's.
Pictures of the page go to the folder that APP_SCREENSHOTS names, if any, else to the test's temporary one.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra `app`")
pytest.importorskip("playwright", reason="needs playwright, of the extra `dev`")

from playwright import sync_api

from tcp_tf import app
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config
from tcp_tf.editor import Editor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.one_stack,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
]

NAMES = (os.environ.get("CHROMIUM", "chromium"), "chromium-browser", "google-chrome-stable", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# No sandbox: tests may run as root. The others keep the browser from calling home, which a closed network punishes.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}  # px
PATIENCE = 60_000  # ms, on a busy machine


@pytest.fixture(scope="module")
def served(tiny_config: Config) -> Iterator[app.Served]:
    """The page of an untrained model."""
    tf.keras.utils.set_random_seed(0)
    page = app.serve(Editor(AutoEncoder.from_config(tiny_config), tiny_config), port=0)
    yield page
    page.close()
    assert not page.temporary.exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip(f"no Chromium found ({', '.join(NAMES)}): install Debian's package chromium, or set CHROMIUM")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


class Visitor:
    """Somebody in front of the page, who notices every error and every call to elsewhere."""

    def __init__(self, browser: Any, url: str, size: str):
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, has_touch=size == "phone")
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.troubles: list[str] = []
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda said: self.troubles.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self._requested(request.url, url))
        self.page.goto(url)
        self.sees("64 x 64 pixels")
        self.page.wait_for_selector(".stage[data-picture]")

    def _requested(self, address: str, home: str) -> None:
        if not address.startswith((home, "data:", "blob:")):
            self.troubles.append(f"asked for {address}")

    def sees(self, text: str) -> None:
        """Waits until the status line says so."""
        self.page.wait_for_function(
            "text => (document.querySelector('#status [role=status]')?.innerText || '').includes(text)", arg=text
        )

    @contextlib.contextmanager
    def result(self) -> Iterator[None]:
        """Waits for the new picture that follows from what happens inside the `with`."""
        count = "Number(document.querySelector('.stage').dataset.results || 0)"
        before = self.page.evaluate(count)
        yield
        self.page.wait_for_function(f"before => {count} > before", arg=before)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Window coordinates of a place of the picture, given as shares of its width and height."""
        canvas = self.page.locator("canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def paint(self, *points: tuple[float, float]) -> None:
        """Paints along points and waits for the result."""
        self.page.mouse.move(*self.place(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.place(*point), steps=6)
        with self.result():
            self.page.mouse.up()
        self.page.mouse.move(1, 1)

    def drop(self, file: Path) -> None:
        """Drops a file on the picture."""
        self.page.evaluate(
            """([name, data]) => {
              const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
              const dataTransfer = new DataTransfer();
              dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
              document.querySelector(".frame").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
            }""",
            [file.name, base64.b64encode(file.read_bytes()).decode()],
        )

    def canvas(self) -> np.ndarray:
        """What the canvas shows, without outlines: RGB."""
        self.page.locator(".outlines").set_checked(False)
        url = self.page.evaluate("document.querySelector('canvas').toDataURL('image/png')")
        with Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def save(self, folder: Path) -> np.ndarray:
        """Downloads the result; the pixels of the file."""
        with self.page.expect_download() as download:
            self.page.click("#save")
        file = folder / download.value.suggested_filename
        download.value.save_as(file)
        with Image.open(file) as image:
            assert image.format == "PNG"
            return np.asarray(image.convert("RGB")).astype(int)

    def width(self) -> int:
        """Of the whole page, px; more than the window's means that one would have to scroll sideways."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))


@pytest.fixture
def visit(browser: Any, served: app.Served) -> Iterator[Callable[[str], Visitor]]:
    """Visitors by size of window; none may have met an error or a call to elsewhere."""
    visitors: list[Visitor] = []

    def arrive(size: str) -> Visitor:
        visitors.append(Visitor(browser, served.url, size))
        return visitors[-1]

    yield arrive
    for visitor in visitors:
        visitor.context.close()
        assert not visitor.troubles


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("APP_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_upload_paint_choose_and_save(visit: Callable[[str], Visitor], tmp_path: Path, screenshots: Path) -> None:
    photo = np.asarray(Image.effect_noise((96, 72), 70).resize((192, 144)).convert("RGB")).astype(int)
    Image.fromarray(photo.astype(np.uint8)).save(tmp_path / "mine.png")
    visitor = visit("desktop")
    page = visitor.page
    page.set_input_files("input[type=file] >> nth=0", tmp_path / "mine.png")
    visitor.sees("192 x 144 pixels")
    assert (visitor.save(tmp_path) == photo).all(), "nothing is painted yet"

    visitor.paint((0.3, 0.3), (0.7, 0.3))
    visitor.sees("1 region filled")
    first = visitor.save(tmp_path)
    changed = np.abs(first - photo).max(axis=-1) > 0
    assert first.shape == photo.shape and changed[38:48, 60:130].mean() > 0.8
    assert not changed[80:].any() and not changed[:, :24].any() and not changed[:, 168:].any()

    with visitor.result():
        page.click("#styles button >> nth=3")
    second = visitor.save(tmp_path)
    assert (second != first).any() and (second[80:] == photo[80:]).all(), "another style, the same place"

    page.get_by_text("+ Region").click()
    visitor.sees("Region 2 takes the style")
    visitor.paint((0.3, 0.8), (0.7, 0.8))
    visitor.sees("2 regions filled")
    both = visitor.save(tmp_path)
    assert (both[100:] != photo[100:]).any()
    page.screenshot(path=screenshots / "desktop-regions.png", full_page=True)

    after = visitor.canvas()
    page.locator(".split").fill("50")
    page.screenshot(path=screenshots / "desktop-compare.png")
    page.locator(".split").fill("100")
    before = visitor.canvas()
    assert (after != before).any()
    page.locator(".split").fill("0")
    with visitor.result():
        page.keyboard.press("Control+z")
    visitor.sees("1 region filled")
    assert (visitor.save(tmp_path) == second).all(), "undo"
    with visitor.result():
        page.click(".undo")
    visitor.sees("Nothing is painted")
    assert (visitor.save(tmp_path) == photo).all() and (visitor.canvas()[8:-8, 8:-8] == before[8:-8, 8:-8]).all()


def test_strength_switch_and_strip(visit: Callable[[str], Visitor], tmp_path: Path, screenshots: Path) -> None:
    visitor = visit("desktop")
    page = visitor.page
    with visitor.result():
        page.click("#samples button >> nth=1")
        page.wait_for_selector(".stage[data-picture]")
        visitor.sees("Scene-2")
        page.click(".all")
    full = visitor.canvas()
    with visitor.result():
        page.locator("#strength input[type=number]").fill("0")
        page.keyboard.press("Enter")
    weak = visitor.canvas()
    assert np.abs(weak - full).mean() > 1
    page.get_by_text("Step by step").click()
    page.click("#make")
    visitor.sees("6 steps")
    page.wait_for_function("document.querySelectorAll('#strip img').length === 6")
    page.screenshot(path=screenshots / "desktop-strip.png", full_page=True)


def test_a_file_that_is_no_picture_gets_a_sentence(visit: Callable[[str], Visitor], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"this is no picture")
    visitor = visit("desktop")
    visitor.page.set_input_files("input[type=file] >> nth=0", tmp_path / "bad.png")
    visitor.sees("This file cannot be used as a picture")
    visitor.page.set_input_files("input[type=file] >> nth=1", tmp_path / "bad.png")
    visitor.sees("This file cannot be used as a picture")
    visitor.drop(tmp_path / "bad.png")
    visitor.page.wait_for_timeout(500)
    visitor.sees("This file cannot be used as a picture")
    Image.new("RGB", (77, 66), "teal").save(tmp_path / "good.png")
    visitor.drop(tmp_path / "good.png")
    visitor.sees("77 x 66 pixels")
    assert "Traceback" not in visitor.page.inner_text("body")
    visitor.paint((0.5, 0.5), (0.6, 0.5))
    visitor.sees("1 region filled")


def test_a_phone(visit: Callable[[str], Visitor], screenshots: Path) -> None:
    visitor = visit("phone")
    page = visitor.page
    page.screenshot(path=screenshots / "phone-start.png", full_page=True)
    with visitor.result():
        page.touchscreen.tap(*visitor.place(0.4, 0.4))
    page.get_by_text("+ Region").tap()
    visitor.sees("Region 2")
    with visitor.result():
        page.touchscreen.tap(*visitor.place(0.6, 0.8))
    visitor.sees("2 regions filled")
    page.get_by_text("Step by step").tap()
    page.tap("#make")
    visitor.sees("6 steps")
    page.wait_for_function("document.querySelectorAll('#strip img').length === 6")
    page.screenshot(path=screenshots / "phone-all.png", full_page=True)
    assert visitor.width() <= SIZES["phone"][0]


def test_nothing_but_the_page_is_served(served: app.Served, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    addresses = [f"gradio_api/file={path}" for path in ("/etc/passwd", tmp_path / "secret.txt", Path(__file__))]
    for address in [*addresses, "gradio_api/proxy=http://127.0.0.1/", "docs", "monitoring", "static/../../app.py"]:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(served.url + address, timeout=30)
        assert refused.value.code in (403, 404), address
    with urllib.request.urlopen(served.url, timeout=30) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_uploads_are_bounded(served: app.Served) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(app.MAX_UPLOAD + 1_000_000) + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{served.url}gradio_api/upload", body, headers)
    with pytest.raises((urllib.error.HTTPError, ConnectionError)) as refused:
        urllib.request.urlopen(request, timeout=60)
    if isinstance(refused.value, urllib.error.HTTPError):
        assert refused.value.code == 413
