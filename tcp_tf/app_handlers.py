"""What happens when something on the page is touched: values in, `Answer` out, nothing of how the page is made."""

from __future__ import annotations

import base64
import functools
import io
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from PIL import Image

from tcp_tf import app_strokes
from tcp_tf.app_session import THUMBNAIL, Session, Sessions, Settings, shrink

MAX_STEPS = 9  # of a strip
KEPT = 3600  # seconds that a file to download stays
_EXACT = 256 * 256  # pixels up to which a picture travels to the page as PNG; larger ones as JPEG

log = logging.getLogger(__name__)


@dataclass
class Answer:
    """What changes on the page; whatever is None or empty stays as it is."""

    status: str
    wrong: bool = False
    stage: dict[str, Any] = field(default_factory=dict)
    controls: Optional[Settings] = None
    gallery: Optional[list[dict[str, str]]] = None
    strip: Optional[list[tuple[Image.Image, str]]] = None
    file: Optional[str] = None


def _sentences(handler: Callable[..., Answer]) -> Callable[..., Answer]:
    """Errors become sentences: a ValueError its own, all others a general one, with the trace in the server's log."""

    @functools.wraps(handler)
    def guarded(self: Handlers, *values: Any) -> Answer:
        try:
            return handler(self, *values)
        except ValueError as error:
            return Answer(str(error), wrong=True)
        except Exception:
            log.exception("%s failed", handler.__name__)
            return Answer("this did not work, and the reason is in the server's log", wrong=True)

    return guarded


class Handlers:
    """One method per event. `key` names the visitor; `drawn` is what the stage holds (`app_strokes.parse`)."""

    def __init__(self, sessions: Sessions, samples: Sequence[tuple[str, Image.Image]], temporary: Path):
        self.sessions, self.samples, self.temporary = sessions, samples, temporary

    @_sentences
    def arrive(self, key: str) -> Answer:
        """A new visitor sees the first sample, where there is one."""
        session = self.sessions.get(key)
        if not self.samples:
            return Answer("Upload a picture to start", stage=_thumbnails(session))
        name, image = self.samples[0]
        return self._open(session, image, name)

    @_sentences
    def sample(self, index: int, key: str) -> Answer:
        """A sample was taken."""
        name, image = self.samples[_place(index, self.samples, "samples")]
        return self._open(self.sessions.get(key), image, name)

    def dropped(self, path: str, key: str) -> Answer:
        """A picture was dropped on the stage. The page names the file, so it must be one that was uploaded here."""
        inside = Path(path).resolve()
        if self.temporary.resolve() not in inside.parents:
            return Answer("pictures are taken from uploads only", wrong=True)
        return self.upload(str(inside), key)

    @_sentences
    def upload(self, path: Optional[str], key: str) -> Answer:
        """A picture was brought along."""
        return self._open(self.sessions.get(key), path, plain_name(path))

    @_sentences
    def paint(self, drawn: Any, key: str) -> Answer:
        """A stroke was made or taken back."""
        session = self._session(drawn, key)
        return self._render(session)

    @_sentences
    def pick(self, drawn: Any, key: str) -> Answer:
        """Another region was chosen to work on."""
        session = self._session(drawn, key)
        active = session.drawing.active
        settings = session.regions[active]
        name = session.styles[settings.style].name if session.styles else "no style yet"
        return Answer(f"Region {active + 1} takes the style {name}: paint it, or pick another style", controls=settings)

    @_sentences
    def style(self, drawn: Any, index: int, key: str) -> Answer:
        """A style of the gallery was picked for the region in work."""
        session = self._session(drawn, key)
        session.regions[session.drawing.active].style = _place(index, session.styles, "styles")
        return self._render(session, **_thumbnails(session))

    @_sentences
    def add_style(self, drawn: Any, path: Optional[str], key: str) -> Answer:
        """A style was brought along: it joins the gallery, and the region in work takes it."""
        session = self._session(drawn, key)
        index = session.add_style(path, plain_name(path))
        settings = session.regions[session.drawing.active]
        settings.style = index
        answer = self._render(session, **_thumbnails(session))
        answer.controls, answer.gallery = settings, items(session.gallery)
        return answer

    @_sentences
    def adjust(self, drawn: Any, strength: float, feather: float, preserve: bool, key: str) -> Answer:
        """A slider of the region in work or the switch for all was moved; both sliders go from 0 to 100."""
        session = self._session(drawn, key)
        settings = session.regions[session.drawing.active]
        settings.strength = min(max(float(strength), 0.0), 100.0) / 100
        settings.feather = min(max(float(feather), 0.0), 100.0) / 400
        session.preserve = bool(preserve)
        return self._render(session)

    @_sentences
    def strip(self, drawn: Any, steps: int, key: str) -> Answer:
        """The strip from the picture's own look to the style of the region in work."""
        session = self._session(drawn, key)
        steps = min(max(int(steps), 2), MAX_STEPS)
        pictures = session.strip(steps)
        labels = [f"{round(100 * number / (steps - 1))} %" for number in range(steps)]
        return Answer(f"{steps} steps from the picture's own look to the style", strip=list(zip(pictures, labels)))

    @_sentences
    def download(self, drawn: Any, key: str) -> Answer:
        """The result at full size, as a PNG file."""
        session = self._session(drawn, key)
        result = session.render_full()
        for old in self.temporary.glob("result-*"):
            if time.time() - old.stat().st_mtime > KEPT:
                shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=self.temporary, prefix="result-"))
        file = folder / f"{session.name}-edited.png"
        result.save(file, "PNG", icc_profile=result.info.get("icc_profile"))
        return Answer(f"Saved {file.name}: {result.width} x {result.height} pixels", file=str(file))

    def leave(self, key: str) -> None:
        """A visitor has closed the page."""
        self.sessions.drop(key)

    def _session(self, drawn: Any, key: str) -> Session:
        session = self.sessions.get(key)
        session.draw(app_strokes.parse(drawn))
        return session

    def _open(self, session: Session, source: Any, name: str) -> Answer:
        image = session.open(source, name)
        assert session.full is not None
        scene = {"picture": session.number, "url": data_url(image), "width": image.width, "height": image.height}
        wide, high = session.full.size
        status = f"{name}: {wide} x {high} pixels. Paint on it to change a part"
        stage = {"scene": scene, **_thumbnails(session)}
        return Answer(status, stage=stage, controls=session.regions[0], gallery=items(session.gallery))

    def _render(self, session: Session, **stage: Any) -> Answer:
        started = time.perf_counter()
        after = {"picture": session.number, "url": data_url(session.render())}
        count = len(session.drawing.regions)
        taken = f"{1000 * (time.perf_counter() - started):.0f} ms"
        status = f"{count} region{'s' if count > 1 else ''} filled in {taken}" if count else "Nothing is painted yet"
        return Answer(status, stage={"after": after, **stage})


def _place(value: Any, among: Sequence[Any], what: str) -> int:
    """The number that the page gives for one of these, checked: it comes from the network."""
    if not isinstance(value, int) or not 0 <= value < len(among):
        raise ValueError(f"there are {len(among)} {what}, got number {str(value)[:20]}: reload the page")
    return value


def items(pictures: Iterable[tuple[str, Image.Image]]) -> list[dict[str, str]]:
    """(name, picture) as the page's rows of small pictures take them."""
    return [{"name": name, "url": data_url(shrink(image.convert("RGB"), THUMBNAIL))} for name, image in pictures]


def _thumbnails(session: Session) -> dict[str, Any]:
    styles = session.styles
    urls = [data_url(styles[region.style].thumbnail) for region in session.regions] if styles else []
    return {"thumbnails": urls}


def data_url(image: Image.Image) -> str:
    """The picture as text for the page: exact where it is small, else as a good JPEG."""
    buffer = io.BytesIO()
    kind = "png" if image.width * image.height <= _EXACT or image.mode not in ("RGB", "L") else "jpeg"
    image.save(buffer, kind, **({"compress_level": 1} if kind == "png" else {"quality": 92}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def plain_name(path: Optional[str]) -> str:
    """A file's name without its ending, of letters that are safe in any file name.

    Raises:
        ValueError: an event came without a file, which the page itself never sends.
    """
    if not path:
        raise ValueError("no file came along")
    return re.sub(r"[^\w-]+", "-", Path(path).stem).strip("-")[:60] or "picture"
