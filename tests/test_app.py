"""The web page behind the page: strokes become masks, handlers answer in sentences, the guard lets only this through.

test_app_in_a_browser.py uses it as a person does.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tcp_tf import allocator, app_guard, app_samples, app_session, app_strokes
from tcp_tf.app_handlers import Answer, Handlers, plain_name
from tcp_tf.app_session import Session, Sessions, make_style
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config
from tcp_tf.editor import Editor


@pytest.fixture(scope="module")
def editor(tiny_config: Config) -> Editor:
    """An untrained model: its pictures mean nothing, but differ with the style."""
    tf.keras.utils.set_random_seed(0)
    return Editor(AutoEncoder.from_config(tiny_config), tiny_config)


@pytest.fixture
def handlers(editor: Editor, tmp_path: Path) -> Handlers:
    library = [make_style(image, name) for name, image in app_samples.scenes(3, 64, first=5)]
    return Handlers(Sessions(editor, library), app_samples.scenes(2, 64), tmp_path)


def drawn(answer: Answer, *strokes: dict[str, Any], active: int = 0) -> dict[str, Any]:
    """What the stage sends after these strokes on the picture of an answer."""
    return {"picture": answer.stage["scene"]["picture"], "active": active, "strokes": list(strokes)}


def stroke(*points: float, region: int = 0, erase: bool = False, width: float = 0.25) -> dict[str, Any]:
    return {"r": region, "e": erase, "w": width, "p": list(points)}


def shown(answer: Answer) -> np.ndarray:
    """The pixels of the preview in an answer."""
    assert not answer.wrong, answer.status
    data = base64.b64decode(answer.stage["after"]["url"].split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


# --- strokes -----------------------------------------------------------------------------------------------------


def masks(*strokes: dict[str, Any], size: tuple[int, int] = (90, 60)) -> dict[int, np.ndarray]:
    drawing = app_strokes.parse({"picture": 1, "active": 0, "strokes": list(strokes)})
    painted = app_strokes.paint(drawing.strokes, size)
    assert all(mask.size == size for mask in painted.values())
    return {region: np.asarray(mask) / 255 for region, mask in painted.items()}


def test_a_dot_is_a_disc_of_its_width() -> None:
    mask = masks(stroke(0.5, 0.5, width=0.5))[0]
    assert mask.sum() == pytest.approx(np.pi * 15**2, rel=0.02)  # diameter: half the short side of 60 px
    assert mask[30, 45] == 1 and mask[30, 45 + 17] == 0 and mask[30 + 17, 45] == 0


def test_a_line_is_as_wide_as_the_brush_and_has_round_ends() -> None:
    mask = masks(stroke(0.3, 0.5, 0.7, 0.5, width=0.2))[0]
    assert mask[:, 45].sum() == pytest.approx(12, abs=0.6)
    assert mask.sum() == pytest.approx(36 * 12 + np.pi * 6**2, rel=0.03)


def test_the_region_that_painted_last_has_the_place() -> None:
    painted = masks(stroke(), stroke(0.5, 0.5, region=1, width=0.5))
    assert painted[1].max() == 1 and painted[0][30, 45] == 0
    np.testing.assert_allclose(painted[0] + painted[1], 1, atol=2 / 255)


def test_the_eraser_brings_back_the_original() -> None:
    painted = masks(stroke(), stroke(0.5, 0.5, erase=True, width=0.5))
    assert painted[0][30, 45] == 0 and painted[0][0, 0] == 1
    assert masks(stroke(0.5, 0.5), stroke(erase=True)) == {}


def test_the_same_strokes_fit_any_size() -> None:
    strokes = stroke(0.2, 0.3, 0.8, 0.6, 0.5, 0.9, width=0.15)
    small, large = (masks(strokes, size=size)[0] for size in ((120, 80), (3600, 2400)))
    reduced = large.reshape(80, 30, 120, 30).mean(axis=(1, 3))
    assert np.abs(small - reduced).mean() < 0.005


@pytest.mark.parametrize(
    "value",
    [
        {"picture": 1, "active": 0},
        {"picture": 1, "active": 9, "strokes": []},
        {"picture": 1, "active": 0, "strokes": [stroke(0.5)]},
        {"picture": 1, "active": 0, "strokes": [stroke(0.5, float("nan"))]},
        {"picture": 1, "active": 0, "strokes": [stroke(0.5, 1e9)]},
        {"picture": 1, "active": 0, "strokes": [stroke(0.5, 0.5, region=-1)]},
        {"picture": 1, "active": 0, "strokes": [stroke(0.5, 0.5, width=0)]},
        {"picture": 1, "active": 0, "strokes": [stroke(0.5, 0.5)] * (app_strokes.MAX_STROKES + 1)},
        {"picture": 1, "active": 0, "strokes": [stroke(*[0.5] * (app_strokes.MAX_NUMBERS + 2))]},
        {"picture": 1, "active": 0, "strokes": 7},
        {"picture": 1, "active": 0, "strokes": [{"r": "x"}]},
        "strokes",
        [1, 2],
    ],
)
def test_a_drawing_that_no_page_sends_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        app_strokes.parse(value)


def test_nothing_drawn_yet() -> None:
    assert app_strokes.parse(None) == app_strokes.parse({}) == app_strokes.EMPTY


# --- what happens on the page ------------------------------------------------------------------------------------


def test_a_visitor_sees_the_first_sample_and_the_styles(handlers: Handlers) -> None:
    answer = handlers.arrive("a")
    scene = answer.stage["scene"]
    assert (scene["width"], scene["height"]) == (64, 64) and scene["url"].startswith("data:image/png;base64,")
    assert len(answer.stage["thumbnails"]) == app_strokes.MAX_REGIONS
    assert answer.gallery is not None and [item["name"] for item in answer.gallery] == ["scene-6", "scene-7", "scene-8"]
    assert "64 x 64" in answer.status and not answer.wrong


def test_without_samples_the_page_asks_for_a_picture(handlers: Handlers) -> None:
    empty = Handlers(handlers.sessions, [], handlers.temporary)
    assert "pload a picture" in empty.arrive("a").status
    answer = empty.paint(None, "a")
    assert answer.wrong and "no picture yet" in answer.status


def test_a_stroke_changes_what_it_covers_and_nothing_else(handlers: Handlers) -> None:
    start = handlers.arrive("a")
    original = np.asarray(handlers.samples[0][1]).astype(int)
    result = shown(handlers.paint(drawn(start, stroke(0.3, 0.5, 0.7, 0.5, width=0.4)), "a"))
    changed = np.abs(result - original).max(axis=-1) > 0
    assert changed[28:36, 20:44].mean() > 0.9
    assert not changed[:16].any() and not changed[48:].any()
    free = handlers.adjust(drawn(start, stroke(0.3, 0.5, 0.7, 0.5, width=0.4)), 100, 8, False, "a")
    assert np.abs(shown(free) - original).max(axis=-1)[:16].any(), "the switch is off: everything is decoded"


def test_strength_zero_keeps_the_picture_and_undo_brings_it_back(handlers: Handlers) -> None:
    start = handlers.arrive("a")
    original = np.asarray(handlers.samples[0][1]).astype(int)
    line = stroke(0.2, 0.5, 0.8, 0.5)
    full = shown(handlers.paint(drawn(start, line), "a"))
    none = shown(handlers.adjust(drawn(start, line), 0, 8, True, "a"))
    assert np.abs(full - original).mean() > 4 * np.abs(none - original).mean()
    assert (shown(handlers.paint(drawn(start), "a")) == original).all()


def test_every_region_has_its_own_style_and_settings(handlers: Handlers) -> None:
    start = handlers.arrive("a")
    both = [stroke(0.25, 0.25, 0.75, 0.25), stroke(0.25, 0.75, 0.75, 0.75, region=1)]
    before = shown(handlers.paint(drawn(start, *both), "a"))
    after = handlers.style(drawn(start, *both, active=1), 0, "a")
    assert after.stage["thumbnails"][1] == after.stage["thumbnails"][0] == start.stage["thumbnails"][0]
    difference = np.abs(shown(after) - before).mean(axis=-1)
    assert difference[40:56].mean() > 4 * difference[:24].mean()
    handlers.adjust(drawn(start, *both, active=1), 30, 50, True, "a")
    first, second = (handlers.pick(drawn(start, *both, active=region), "a").controls for region in (0, 1))
    assert first is not None and second is not None
    assert (first.style, first.strength, second.style, second.strength) == (0, 1.0, 0, 0.3)


def test_a_picture_is_encoded_once(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real = Editor.open

    def counted(self: Editor, *values: Any) -> Any:
        opened.append(values)
        return real(self, *values)

    monkeypatch.setattr(Editor, "open", counted)
    start = handlers.arrive("a")
    for x in (0.2, 0.4, 0.6):
        shown(handlers.paint(drawn(start, stroke(x, 0.5)), "a"))
    assert not handlers.download(drawn(start, stroke(0.5, 0.5)), "a").wrong
    assert len(opened) == 1


def test_a_stroke_is_answered_at_once(handlers: Handlers) -> None:
    start = handlers.arrive("a")
    handlers.paint(drawn(start, stroke(0.5, 0.5)), "a")  # traces
    taken = []
    for x in np.linspace(0.1, 0.9, 9):
        started = time.perf_counter()
        shown(handlers.paint(drawn(start, stroke(float(x), 0.5)), "a"))
        taken.append(time.perf_counter() - started)
    assert np.median(taken) < 0.3, taken  # seconds; a busy machine needs far less


def test_download_is_the_preview_of_a_small_picture_and_full_size_of_a_large_one(
    handlers: Handlers, tmp_path: Path
) -> None:
    start = handlers.arrive("a")
    line = stroke(0.2, 0.5, 0.8, 0.5)
    preview = shown(handlers.paint(drawn(start, line), "a"))
    saved = handlers.download(drawn(start, line), "a").file
    assert saved is not None and Path(saved).name == "scene-1-edited.png"
    assert (np.asarray(Image.open(saved).convert("RGB")) == preview).all()

    photo = np.asarray(Image.effect_noise((1250, 830), 60).convert("RGB"))
    Image.fromarray(photo).save(tmp_path / "My Photo (1).png")
    start = handlers.upload(str(tmp_path / "My Photo (1).png"), "a")
    assert max(start.stage["scene"]["width"], start.stage["scene"]["height"]) == app_session.PREVIEW
    saved = handlers.download(drawn(start, line), "a").file
    assert saved is not None and Path(saved).name == "My-Photo-1-edited.png"
    result = np.asarray(Image.open(saved).convert("RGB"))
    changed = np.abs(result.astype(int) - photo).max(axis=-1) > 0
    assert result.shape == photo.shape and changed[400:430, 400:850].mean() > 0.9
    assert not changed[:280].any() and not changed[550:].any()


def test_old_downloads_are_deleted(handlers: Handlers) -> None:
    start = handlers.arrive("a")
    first, second = (Path(str(handlers.download(drawn(start), "a").file)) for _ in range(2))
    assert first.exists() and second.exists()
    os.utime(first.parent, (0, 0))
    handlers.download(drawn(start), "a")
    assert not first.exists() and second.exists()


def test_orientation_and_transparency_of_an_upload(handlers: Handlers, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 64), "red").save(tmp_path / "turned.jpg", exif=exif)
    scene = handlers.upload(str(tmp_path / "turned.jpg"), "a").stage["scene"]
    assert (scene["width"], scene["height"]) == (64, 80)
    Image.new("LA", (70, 66), (90, 128)).save(tmp_path / "glass.png")
    start = handlers.upload(str(tmp_path / "glass.png"), "a")
    saved = handlers.download(drawn(start, stroke(0.5, 0.5)), "a").file
    assert saved is not None and Image.open(saved).getchannel("A").getextrema() == (128, 128)


def test_a_style_of_ones_own(handlers: Handlers, tmp_path: Path) -> None:
    Image.effect_noise((200, 100), 90).save(tmp_path / "grain.png")
    start = handlers.arrive("a")
    line = stroke(0.2, 0.5, 0.8, 0.5)
    before = shown(handlers.paint(drawn(start, line), "a"))
    answer = handlers.add_style(drawn(start, line), str(tmp_path / "grain.png"), "a")
    assert answer.gallery is not None and answer.gallery[-1]["name"] == "grain"
    assert answer.controls is not None and answer.controls.style == 3
    assert (shown(answer) != before).any()
    assert len(handlers.sessions.get("b").styles) == 3, "another visitor does not see it"
    for _ in range(app_session.MAX_OWN_STYLES):
        answer = handlers.add_style(drawn(start, line), str(tmp_path / "grain.png"), "a")
    assert answer.wrong and str(app_session.MAX_OWN_STYLES) in answer.status


def test_the_strip_goes_from_the_own_look_to_the_style(handlers: Handlers, editor: Editor) -> None:
    start = handlers.arrive("a")
    answer = handlers.strip(drawn(start), 4, "a")
    assert answer.strip is not None and [label for _, label in answer.strip] == ["0 %", "33 %", "67 %", "100 %"]
    picture = editor.open(handlers.samples[0][1])
    for end, style in ((0, picture.style), (-1, handlers.sessions.library[0].picture)):
        assert np.abs(np.asarray(answer.strip[end][0], int) - np.asarray(picture.swap(style), int)).max() <= 1


# --- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_an_upload_that_is_no_picture_gets_a_sentence(handlers: Handlers, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    start = handlers.arrive("a")
    for answer in (
        handlers.upload(str(tmp_path / "bad.png"), "a"),
        handlers.add_style(drawn(start), str(tmp_path / "bad.png"), "a"),
    ):
        assert answer.wrong and "picture" in answer.status and "\n" not in answer.status
    assert not handlers.paint(drawn(start, stroke(0.5, 0.5)), "a").wrong, "the picture before is still there"


def test_an_event_without_a_file_gets_a_sentence(handlers: Handlers) -> None:
    start = handlers.arrive("a")
    for answer in (handlers.upload(None, "a"), handlers.add_style(drawn(start), None, "a")):
        assert answer.wrong and answer.status == "no file came along"


def test_a_picture_of_too_many_pixels_gets_a_sentence(
    handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_session, "MAX_PIXELS", 2_000_000)
    Image.new("L", (2000, 1001)).save(tmp_path / "large.png")
    answer = handlers.upload(str(tmp_path / "large.png"), "a")
    assert answer.wrong and "2000 x 1001" in answer.status and "2 million" in answer.status


def test_an_unexpected_error_is_a_sentence_for_the_visitor_and_a_trace_for_the_log(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = handlers.arrive("a")
    monkeypatch.setattr(Session, "render", lambda self: 1 / 0)
    with caplog.at_level(logging.ERROR):
        answer = handlers.paint(drawn(start, stroke(0.5, 0.5)), "a")
    assert answer.wrong and "ZeroDivision" not in answer.status and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("number", [-1, 99, None, "x", [1], {"a": 1}, 0.5])
def test_a_number_that_the_page_does_not_offer_gets_a_sentence(handlers: Handlers, number: Any) -> None:
    start = handlers.arrive("a")
    for answer in (handlers.sample(number, "a"), handlers.style(drawn(start), number, "a")):
        assert answer.wrong and "reload the page" in answer.status


def test_only_uploads_can_be_dropped(handlers: Handlers, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    handlers.samples[0][1].save(outside)
    handlers.samples[0][1].save(tmp_path / "inside.png")
    assert handlers.dropped(str(outside), "a").wrong
    assert handlers.dropped(str(tmp_path / ".." / outside.name), "a").wrong
    assert not handlers.dropped(str(tmp_path / "inside.png"), "a").wrong


def test_strokes_on_an_earlier_picture_are_not_painted_on_this_one(handlers: Handlers) -> None:
    first = handlers.arrive("a")
    handlers.sample(1, "a")
    answer = handlers.paint(drawn(first, stroke(0.5, 0.5)), "a")
    assert (shown(answer) == np.asarray(handlers.samples[1][1])).all()


def test_visitors_are_bounded_and_told_when_forgotten(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(handlers.sessions.editor, handlers.sessions.library, limit=2, idle=1000.0)
    trims: list[int] = []  # visitors left each time that memory is given back
    monkeypatch.setattr(allocator, "trim", lambda: trims.append(len(sessions)))
    few = Handlers(sessions, handlers.samples, handlers.temporary)
    start = few.arrive("a")
    few.arrive("b")
    few.arrive("c")
    assert len(sessions) == 2
    answer = few.paint(drawn(start, stroke(0.5, 0.5)), "a")
    assert answer.wrong and "let go of this picture" in answer.status
    few.leave("a")
    assert len(sessions) == 1
    sessions.get("c").used -= 2000
    sessions.get("d")
    assert len(sessions) == 1
    sessions.drop("nobody")
    assert trims == [2, 2, 1, 0]


def test_names_of_files_are_harmless() -> None:
    assert plain_name("/a/../b/Füße & <script>.jpeg") == "Füße-script"
    assert plain_name("???.png") == "picture" and len(plain_name("x" * 300)) == 60


# --- samples ------------------------------------------------------------------------------------------------------


def test_samples_of_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        app_samples.from_folder(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no picture in it"):
        app_samples.from_folder(tmp_path)
    Image.new("RGB", (3000, 100)).save(tmp_path / "wide.JPG", "JPEG")
    (name, image), *others = app_samples.from_folder(tmp_path)
    assert name == "wide" and image.size[0] == app_session.PREVIEW and not others
    assert "broken.png is left out" in caplog.text


# --- the guard ----------------------------------------------------------------------------------------------------


def request(method: str, path: str, body: bytes = b"") -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and, where the application was reached, the body that it has seen."""
    sent: list[dict[str, Any]] = []
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)] or [b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen = b""
        while True:
            message = await receive()
            seen += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": seen})

    scope = {"type": "http", "method": method, "path": path}
    asyncio.run(app_guard.Guard(application)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://example.com/"),
        ("GET", "/gradio_api/file=http://example.com/x.png"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/paint"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/login"),
        ("DELETE", "/"),
    ],
)
def test_the_guard_refuses_what_the_page_does_not_need(method: str, path: str) -> None:
    status, headers, _ = request(method, path)
    assert status == 404 and b"content-security-policy" in headers


def test_the_guard_lets_the_page_through_whole() -> None:
    message = json.dumps({"data": [{"path": "/somewhere/picture.png", "meta": {}}], "x": "y" * 5000}).encode()
    status, headers, seen = request("POST", "/gradio_api/queue/join", message)
    assert (status, seen) == (200, message)
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    for path in ("/", "/config", "/theme.css", "/assets/index.js", "/gradio_api/file=/t/x.png"):
        assert request("GET", path)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"data": [{"path": "http://10.0.0.1/", "meta": {"_type": "gradio.FileData"}}]}).encode(),
        json.dumps({"data": [[{"a": {"path": "HTTPS://example.com"}}]]}).encode(),
        b'{"data": [{"path": "\\u0068ttp://example.com"}]}',
        b"no json",
        b"[" * 100_000,
    ],
)
def test_the_guard_lets_nobody_make_the_server_fetch_an_address(body: bytes) -> None:
    assert request("POST", "/gradio_api/queue/join", body)[0] == 400


def test_the_guard_bounds_messages() -> None:
    body = json.dumps("x" * app_guard.MAX_MESSAGE).encode()
    assert request("POST", "/gradio_api/queue/join", body)[0] == 413
