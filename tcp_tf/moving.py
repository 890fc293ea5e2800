"""Moving pictures out of a list of them: GIF with Pillow, MP4 with imageio-ffmpeg where that is installed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tcp_tf import pictures

SUFFIXES = (".gif", ".mp4")


class MovingError(ValueError):
    """A moving picture that cannot be written; one line that says why."""


def check(path: Path) -> None:
    """Raises MovingError where `path` needs a library that is not installed; cheap enough to ask before the work."""
    if path.suffix.lower() == ".mp4":
        _ffmpeg(path)


def save(frames: Sequence[Image.Image], path: Path, fps: float) -> None:
    """Writes frames of one size as a GIF that repeats for ever, or as an H.264 MP4, by the name's ending.

    Args:
        fps: frames per second; GIF counts in hundredths of a second per frame.
    Raises:
        MovingError: another ending, or MP4 without imageio-ffmpeg.
    """
    colours = [frame.convert("RGB") for frame in frames]
    if path.suffix.lower() == ".gif":
        options = {"save_all": True, "append_images": colours[1:], "duration": round(1000 / fps), "loop": 0}
        pictures.write(path, lambda file: colours[0].save(file, format="GIF", **options))
    elif path.suffix.lower() == ".mp4":
        _save_mp4(colours, path, fps)
    else:
        raise MovingError(f"{path}: moving pictures are written as one of {', '.join(SUFFIXES)}")


def _save_mp4(frames: Sequence[Image.Image], path: Path, fps: float) -> None:
    ffmpeg = _ffmpeg(path)
    height, width = (side + side % 2 for side in frames[0].size[::-1])  # H.264 halves the colour's resolution
    handle, temporary = tempfile.mkstemp(suffix=".mp4")
    os.close(handle)
    try:
        writer = ffmpeg.write_frames(temporary, (width, height), fps=fps, quality=8, macro_block_size=2)
        writer.send(None)
        for frame in frames:
            pixels = np.asarray(frame)
            missing = [(0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)]
            writer.send(np.pad(pixels, missing, mode="edge").tobytes())
        writer.close()
        content = Path(temporary).read_bytes()
    finally:
        os.unlink(temporary)
    pictures.write(path, lambda file: file.write(content))


def _ffmpeg(path: Path):
    try:
        import imageio_ffmpeg
    except ImportError:
        raise MovingError(
            f"{path}: MP4 needs the extra `video` (pip install 'tcp_tf[video]'); GIF does without"
        ) from None
    return imageio_ffmpeg
