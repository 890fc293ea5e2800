"""The page as Gradio builds it: where things stand, and which handler answers what."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tcp_tf.app_handlers import KEPT, MAX_STEPS, Answer, Handlers, data_url, items
from tcp_tf.app_session import Settings
from tcp_tf.images import SUFFIXES

TITLE = "Paint a new look into a picture"
SUMMARY = "Choose a style, then paint where it should go. Everything else stays as it is."
_HERE = Path(__file__).resolve().parent
_HTML, _JS, CSS = ((_HERE / f"app_stage.{kind}").read_text(encoding="utf-8") for kind in ("html", "js", "css"))
_PICKER = (_HERE / "app_picker.js").read_text(encoding="utf-8")
_SWEEP = 600, KEPT  # seconds: every so often, uploads older than that are deleted
_START = Settings(0)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"), ("ui-monospace", "Consolas", "monospace")

# Strokes come in quick succession: the latest matters, and one at a time is as fast as the machine can.
_LIVE: dict[str, Any] = {"concurrency_id": "live", "concurrency_limit": 1, "show_progress": "hidden"}
_SLOW: dict[str, Any] = {"concurrency_id": "slow", "concurrency_limit": 1, "show_progress": "minimal"}


def theme() -> gr.themes.Base:
    """Gradio's plain theme with the visitor's own fonts: nothing is fetched."""
    text, code = _FONTS
    return gr.themes.Default(font=text, font_mono=code, primary_hue="indigo", spacing_size="sm", radius_size="md")


def build(handlers: Handlers) -> gr.Blocks:
    """The page, not yet served."""
    files, library = [*SUFFIXES], handlers.sessions.library
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_SWEEP) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>{SUMMARY}</p>", elem_id="head")
        with gr.Row(elem_id="main"):
            with gr.Column(scale=7, min_width=320):
                stage = gr.HTML(
                    value=None,
                    html_template=_HTML,
                    js_on_load=_JS,
                    apply_default_css=False,
                    elem_id="stage",
                    scene=None,
                    after=None,
                    thumbnails=[],
                )
                status = gr.HTML(_line(Answer("One moment")), elem_id="status")
                with gr.Row(elem_id="finish"):
                    preserve = gr.Checkbox(
                        True, label="Keep the rest exactly as it was", min_width=220, elem_id="preserve"
                    )
                    save = gr.Button("Download PNG at full size", variant="primary", min_width=220, elem_id="save")
                    file = gr.DownloadButton("Result", visible="hidden", elem_id="file")
            with gr.Column(scale=4, min_width=300):
                with gr.Column(elem_id="picture", elem_classes="card"):
                    gr.HTML("<h2>Picture</h2>")
                    samples = _picker(items(handlers.samples), "samples")
                    upload = gr.UploadButton("Upload a picture", file_types=files, elem_id="upload", size="md")
                with gr.Column(elem_id="style", elem_classes="card"):
                    gr.HTML("<h2>Style of the chosen region</h2>")
                    styles = _picker(items((style.name, style.thumbnail) for style in library), "styles")
                    own = gr.UploadButton("Upload a style", file_types=files, elem_id="own", size="md")
                    strength = gr.Slider(0, 100, 100 * _START.strength, step=1, label="Strength, %", elem_id="strength")
                    feather = gr.Slider(0, 100, 400 * _START.feather, step=1, label="Soft edge, %", elem_id="feather")
        with gr.Accordion("Step by step to the style", open=False, elem_id="way"):
            with gr.Row():
                steps = gr.Slider(3, MAX_STEPS, 6, step=1, label="Pictures", scale=3, min_width=160)
                make = gr.Button("Show the steps", scale=1, min_width=140, elem_id="make")
            strip = gr.HTML(elem_id="strip")

        touched = [stage, strength, feather, styles, status]

        def changes(answer: Answer) -> list[Any]:
            controls = answer.controls
            return [
                _skip_or_update(**answer.stage),
                _skip_or_update(value=None if controls is None else 100 * controls.strength),
                _skip_or_update(value=None if controls is None else 400 * controls.feather),
                _skip_or_update(items=answer.gallery, value=None if controls is None else controls.style),
                _line(answer),
            ]

        def arrive(request: gr.Request) -> list[Any]:
            return changes(handlers.arrive(_key(request)))

        def sample(chosen: int, request: gr.Request) -> list[Any]:
            return changes(handlers.sample(chosen, _key(request)))

        def dropped(event: gr.EventData, request: gr.Request) -> list[Any]:
            return changes(handlers.dropped(str(event.path), _key(request)))

        def uploaded(path: str, request: gr.Request) -> list[Any]:
            return changes(handlers.upload(path, _key(request)))

        def paint(drawn: Any, request: gr.Request) -> list[Any]:
            return changes(handlers.paint(drawn, _key(request)))

        def pick(drawn: Any, request: gr.Request) -> list[Any]:
            return changes(handlers.pick(drawn, _key(request)))

        def style(drawn: Any, chosen: int, request: gr.Request) -> list[Any]:
            return changes(handlers.style(drawn, chosen, _key(request)))

        def add_style(drawn: Any, path: str, request: gr.Request) -> list[Any]:
            return changes(handlers.add_style(drawn, path, _key(request)))

        def adjust(drawn: Any, strong: float, soft: float, keep: bool, request: gr.Request) -> list[Any]:
            return changes(handlers.adjust(drawn, strong, soft, keep, _key(request)))

        def way(drawn: Any, count: int, request: gr.Request) -> list[Any]:
            answer = handlers.strip(drawn, count, _key(request))
            return [gr.skip() if answer.strip is None else _figures(answer.strip), _line(answer)]

        def download(drawn: Any, request: gr.Request) -> list[Any]:
            answer = handlers.download(drawn, _key(request))
            return [answer.file, _line(answer)]

        def leave(request: gr.Request) -> None:
            handlers.leave(_key(request))

        page.load(arrive, None, touched, **_LIVE)
        samples.choose(sample, samples, touched, **_LIVE)
        upload.upload(uploaded, upload, touched, **_LIVE)
        stage.paint(paint, stage, touched, trigger_mode="always_last", **_LIVE)
        stage.drop(dropped, None, touched, **_LIVE)
        stage.pick(pick, stage, touched, trigger_mode="always_last", **_LIVE)
        styles.choose(style, [stage, styles], touched, trigger_mode="always_last", **_LIVE)
        own.upload(add_style, [stage, own], touched, **_LIVE)
        values = [stage, strength, feather, preserve]
        for control in (strength, feather, preserve):
            control.input(adjust, values, touched, trigger_mode="always_last", **_LIVE)
        make.click(way, [stage, steps], [strip, status], **_SLOW)
        save.click(download, stage, [file, status], **_SLOW).then(
            None, file, None, js="(file) => file && document.querySelector('#file').click()"
        )
        page.unload(leave)
    return page


def _picker(pictures: list[dict[str, str]], name: str) -> gr.HTML:
    """A row of small pictures; its value is the number of the chosen one."""
    return gr.HTML(
        value=0,
        html_template='<div class="picker" role="group"></div>',
        js_on_load=_PICKER,
        apply_default_css=False,
        visible=name != "samples" or bool(pictures),
        elem_id=name,
        items=pictures,
    )


def _skip_or_update(**values: Any) -> Any:
    """An update of what is not None; nothing at all where all of it is."""
    given = {name: value for name, value in values.items() if value is not None}
    return gr.update(**given) if given else gr.skip()


def _figures(pictures: list[tuple[Image.Image, str]]) -> str:
    """The strip; a click on a picture saves it."""
    return "".join(
        f'<figure><a href="{url}" download="step-{number}.{url[11:].split(";")[0]}"><img src="{url}" alt="{label}"></a>'
        f"<figcaption>{label}</figcaption></figure>"
        for number, (url, label) in enumerate(((data_url(image), label) for image, label in pictures), 1)
    )


def _line(answer: Answer) -> str:
    """The status line: one sentence."""
    text = answer.status
    sentence = html.escape(text[:1].upper() + text[1:].rstrip(".") + ".")
    return f'<span class="{"wrong" if answer.wrong else "right"}" role="status">{sentence}</span>'


def _key(request: gr.Request) -> str:
    return str(request.session_hash)
