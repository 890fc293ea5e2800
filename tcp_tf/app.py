"""The web page: `python -m tcp_tf app --model PATH`. Needs the extra `app` (Gradio).

Listens on this machine only unless told otherwise, keeps its files in a temporary directory of its own, and asks
nothing of the network: no analytics, no fonts or scripts from elsewhere.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from tcp_tf.config import PRECISIONS

if TYPE_CHECKING:
    import gradio
    from PIL import Image

    from tcp_tf.editor import Editor

MAX_UPLOAD = 40_000_000  # bytes of one file
QUEUE = 64  # events that may wait; more are turned away
_STYLES, _SAMPLES = 12, 8  # scenes that are drawn where no folder is given

# Read by Gradio and its libraries while they are imported and while they run: nothing goes out, and no statistics are
# made. By default it keeps ten thousand events and after each makes a table of them all, which costs time and memory.
_GRADIO = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**62),
}


class Served(NamedTuple):
    """A page that is being served."""

    page: gradio.Blocks
    url: str
    temporary: Path

    def close(self) -> None:
        """Stops serving and deletes the temporary directory."""
        self.page.close(verbose=False)
        shutil.rmtree(self.temporary, ignore_errors=True)


def serve(
    editor: Editor,
    samples: Optional[Path] = None,
    styles: Optional[Path] = None,
    host: str = "127.0.0.1",
    port: int = 7860,
) -> Served:
    """Serves the page from a thread of its own and returns at once.

    Args:
        editor: the model.
        samples, styles: folders of pictures to offer; without, drawn scenes. Without `styles`, `samples` serve as both.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
    Raises:
        ValueError: a folder cannot be used, Gradio is not installed, or the port is taken.
    """
    temporary = Path(tempfile.mkdtemp(prefix="tcp_tf-app-"))
    os.environ.update(_GRADIO, GRADIO_TEMP_DIR=str(temporary))
    try:
        return _serve(editor, samples, styles, host, port, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _serve(
    editor: Editor, samples: Optional[Path], styles: Optional[Path], host: str, port: int, temporary: Path
) -> Served:
    try:
        import gradio  # noqa: F401 - the heavy import comes after the settings above
    except ImportError as error:
        raise ValueError(f"the page needs Gradio: pip install 'tcp_tf[app]' ({error})") from error
    from starlette.middleware import Middleware

    from tcp_tf import app_page, app_samples
    from tcp_tf.app_guard import Guard
    from tcp_tf.app_handlers import Handlers
    from tcp_tf.app_session import Sessions, make_style

    side = editor.resolution
    pictures = app_samples.from_folder(samples) if samples else app_samples.scenes(_SAMPLES, side)
    if styles:
        looks = app_samples.from_folder(styles)
    else:
        looks = pictures if samples else app_samples.scenes(_STYLES, side, first=_SAMPLES)
    library = [make_style(image, name) for name, image in looks]
    _warm_up(editor, pictures[0][1])
    page = app_page.build(Handlers(Sessions(editor, library), pictures, temporary))
    page.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            theme=app_page.theme(),
            css=app_page.CSS,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            share=False,
            show_error=False,
            max_file_size=MAX_UPLOAD,
            max_threads=8,
            footer_links=[],
            allowed_paths=[],
            state_session_capacity=64,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [Middleware(Guard)], "docs_url": None, "redoc_url": None},
        )
    except OSError as error:
        reason = "the port is taken, or the address is not one of this machine"
        raise ValueError(f"cannot listen on {host}:{port}: {reason}") from error
    return Served(page, url, temporary)


def _warm_up(editor: Editor, image: Image.Image) -> None:
    """TensorFlow traces each number of regions once, which takes a second or so: better now than at first strokes."""
    from PIL import Image

    from tcp_tf.app_strokes import MAX_REGIONS
    from tcp_tf.editor import Region

    picture = editor.open(image)
    for count in range(1, MAX_REGIONS + 1):
        regions = [Region(Image.new("L", image.size, 255), picture.style) for _ in range(count)]
        picture.edit(regions, preserve_background=True)
    picture.interpolate([picture.style], 2)


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tcp_tf app", description="Serve the web page of a trained model.")
    parser.add_argument("--model", required=True, metavar="PATH", help="run directory or exported SavedModel")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="TCP port, 0 for a free one (default 7860)")
    parser.add_argument("--samples", type=Path, metavar="DIR", help="pictures to offer (default: drawn scenes)")
    parser.add_argument("--styles", type=Path, metavar="DIR", help="styles to offer (default: those of --samples)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="the networks' arithmetic (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio calls its own page once, at the start
    from tcp_tf.editor import Editor  # TensorFlow takes seconds, which --help need not

    try:
        editor = Editor.load(options.model, precision=options.precision)
        served = serve(editor, options.samples, options.styles, options.host, options.port)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # a service manager's stop cleans up too
    print(f"The page is at {served.url} (Ctrl+C ends it)", flush=True)
    try:
        served.page.block_thread()
    except KeyboardInterrupt:
        pass
    finally:
        served.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
