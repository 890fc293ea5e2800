"""The host side of training: metric lines, picture grids, checkpoints, progress, and when to stop."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from tcp_tf import checkpoints, data, guards
from tcp_tf.model import TCP
from tcp_tf.objective import CONSISTENCY_TERMS

log = logging.getLogger(__name__)


class NonFiniteLoss(RuntimeError):
    """A loss term, a gradient, or what a step made of the weights, became NaN or infinite."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the last finished step is saved."""


class CannotWrite(RuntimeError):
    """The disk is full, or refuses for another reason what a training has to write."""


@contextlib.contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turns what the system says of a file that cannot be written, to Python or to TensorFlow, into one sentence.

    Raises:
        CannotWrite: naming `what` and the reason.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        # TensorFlow says `{{node ...}} FILE; REASON [Op:...]`, and then what else went wrong.
        reason = str(error).partition("\n")[0].rpartition("; ")[2].partition(" [Op:")[0]
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        raise CannotWrite(f"{what} cannot be written: {reason}") from error


class Clock(keras.callbacks.Callback):
    """Base of callbacks that do something every so many kimg; `step` counts finished steps, over resumptions too."""

    def __init__(self, every_kimg: float, batch_size: int, start_step: int):
        super().__init__()
        self.batch_size, self.step = batch_size, start_step
        self.every_steps = max(1, round(every_kimg * 1000 / batch_size))

    @property
    def kimg(self) -> float:
        """Thousands of real pictures seen so far."""
        return self.step * self.batch_size / 1000.0

    def on_train_batch_end(self, batch: int, logs: Optional[Mapping[str, float]] = None) -> None:
        self.step += 1
        self.on_step(logs or {})
        if self.step % self.every_steps == 0:
            self.on_tick()

    def on_step(self, logs: Mapping[str, float]) -> None:
        """After every step."""

    def on_tick(self) -> None:
        """After every `every_kimg`."""

    def close(self) -> None:
        """When the training has ended, however it did."""


class Metrics(Clock):
    """Means of the raw terms since the last tick, to `metrics.jsonl` and TensorBoard, and the progress bar.

    A lazily computed term is averaged over the steps on which it was computed. A mean that leaves the band in which
    a training learns is warned of (see `guards.Bands`).
    """

    def __init__(self, run_dir: Path, every_kimg: float, batch_size: int, start_step: int, total_steps: int):
        super().__init__(every_kimg, batch_size, start_step)
        self.file, self.total_steps = run_dir / "metrics.jsonl", total_steps
        self.values: dict[str, list[float]] = defaultdict(list)
        self.tick_time, self.tick_step = time.monotonic(), start_step
        self.writer = tf.summary.create_file_writer(str(run_dir / "tensorboard"))
        self.bar: Any = None

    def on_train_begin(self, logs=None) -> None:
        starts, model = self.model.objective.starts, self.model.config.model
        begin = [starts[name] for name in CONSISTENCY_TERMS if name in starts]
        sizes = {"content": model.content_dim, "style": model.style_dim}
        self.bands = guards.Bands(sizes, min(begin, default=None))
        with writing(self.file):
            drop_lines_after(self.file, self.step)
        self.bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            unit="kimg",
            unit_scale=self.batch_size / 1000.0,
            bar_format="{l_bar}{bar}| {n:.2f}/{total:.2f} kimg [{elapsed}<{remaining}{postfix}]",
            dynamic_ncols=True,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,  # a log file wants no line a second
        )

    def on_step(self, logs: Mapping[str, float]) -> None:
        for name, value in logs.items():
            if self.model.objective.due(name, self.step - 1):
                self.values[name].append(float(value))
        self.bar.update(1)

    def on_tick(self) -> None:
        now = time.monotonic()
        speed = (self.step - self.tick_step) * self.batch_size / (now - self.tick_time)
        self.tick_time, self.tick_step = now, self.step
        means = {name: float(np.mean(values)) for name, values in self.values.items()}
        means.update(guards.balance(means))
        self.values.clear()
        line = {"step": self.step, "kimg": round(self.kimg, 6), "images_per_second": round(speed, 2), **means}
        with writing(self.file), open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        with writing(self.file.parent / "tensorboard"), self.writer.as_default(step=self.step):
            for name, value in means.items():
                tf.summary.scalar(name, value)
            tf.summary.scalar("images_per_second", speed)
        shown: dict[str, str] = {
            name: f"{means[name]:.3f}" for name in ("g/l1", "g/gan_swap", "d/gan_swap") if name in means
        }
        self.bar.set_postfix({"img/s": f"{speed:.1f}"} | shown, refresh=False)
        for sentence in self.bands.judge(means, self.step):
            log.warning("step %d: %s", self.step, sentence)

    def on_train_end(self, logs=None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the progress bar and flushes TensorBoard's file."""
        if self.bar is not None:
            self.bar.close()
        with writing(self.file.parent / "tensorboard"):
            self.writer.flush()


def drop_lines_after(file: Path, step: int) -> None:
    """Removes what a killed run logged after its last checkpoint, so that no step stands in the file twice."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line cut off by the kill
        if entry["step"] <= step:
            kept.append(line + "\n")
    whole = file.with_suffix(".new")  # a kill at this moment must not cost the lines that are kept
    whole.write_text("".join(kept), encoding="utf-8")
    os.replace(whole, file)


class Grids(Clock):
    """Picture grids of held-out pictures by the averaged weights: `grids/swap-*.png` and `grids/edit-*.png`."""

    def __init__(self, run_dir: Path, every_kimg: float, batch_size: int, start_step: int, pictures: np.ndarray):
        super().__init__(every_kimg, batch_size, start_step)
        self.folder, self.pictures = run_dir / "grids", pictures
        self.writer = tf.summary.create_file_writer(str(run_dir / "tensorboard"))

    def on_tick(self) -> None:
        self.draw()

    def draw(self) -> None:
        """Writes both grids for the present weights."""
        pictures = {"swap": swap_grid(self.model, self.pictures), "edit": edit_grid(self.model, self.pictures)}
        for name, grid in pictures.items():
            file = self.folder / f"{name}-{self.kimg:09.3f}.png"
            with writing(file):
                self.folder.mkdir(parents=True, exist_ok=True)
                whole = self.folder / f".{name}.png"  # one name, so that a kill leaves one file at most
                Image.fromarray(grid).save(whole)
                os.replace(whole, file)
            with writing(self.folder), self.writer.as_default(step=self.step):
                tf.summary.image(f"grid/{name}", grid[None])
        with writing(self.folder):
            self.writer.flush()


def swap_grid(model: TCP, pictures: np.ndarray, contents: int = 6, styles: int = 6) -> np.ndarray:
    """Rows are contents, columns styles; the first column is the input, the second its reconstruction.

    Args:
        pictures: `[N, R, R, 3]` in [-1, 1]; see `halves`.
    Returns:
        uint8 `[(rows + 1) R, (columns + 2) R, 3]`.
    """
    first, second = halves(pictures)
    content_images, style_images = first[:contents], second[:styles]
    contents, styles = len(content_images), len(style_images)
    codes, looks = model.encode(content_images), model.encode(style_images).style
    swaps = model.decode(tf.repeat(codes.content, styles, axis=0), tf.tile(looks, [contents, 1])).numpy()
    reconstructions = model.decode(*codes).numpy()
    blank = np.ones_like(pictures[0])
    rows = [[blank, blank, *style_images]]
    for i in range(contents):
        rows.append([content_images[i], reconstructions[i], *swaps[i * styles : (i + 1) * styles]])
    return tile(rows)


def edit_grid(model: TCP, pictures: np.ndarray, examples: int = 6) -> np.ndarray:
    """A row per example: input, style image, mask, hybrid, global transfer; masks are one of each kind in turn."""
    images, style_images = (half[:examples] for half in halves(pictures))
    examples = len(images)
    masks = example_masks(examples, pictures.shape[1])
    hybrids = model.masked_blend(images, style_images, masks).numpy()
    swaps = model.swap(images, style_images).numpy()
    shown = np.repeat(2.0 * masks - 1.0, 3, axis=-1)
    return tile([[images[i], style_images[i], shown[i], hybrids[i], swaps[i]] for i in range(examples)])


def halves(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equally many pictures for contents and for styles; a single one is both."""
    half = len(pictures) // 2
    return (pictures[:half], pictures[half : 2 * half]) if half else (pictures, pictures)


def example_masks(count: int, side: int) -> np.ndarray:
    """Masks that a person might paint, in turn: right half, disc, upper half, left half: `[N, side, side, 1]`."""
    y, x = np.meshgrid((np.arange(side) + 0.5) / side, (np.arange(side) + 0.5) / side, indexing="ij")
    kinds = [x > 0.5, (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1, y < 0.5, x < 0.5]
    return np.stack([kinds[i % len(kinds)] for i in range(count)]).astype(np.float32)[..., None]


def tile(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of equally large pictures in [-1, 1] -> one uint8 picture."""
    return data.to_uint8(np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0))


class Checkpoints(Clock):
    """Saves every so many kimg and at the end; `save` may be called at any time between steps."""

    def __init__(self, manager: checkpoints.Manager, every_kimg: float, batch_size: int, start_step: int):
        super().__init__(every_kimg, batch_size, start_step)
        self.manager, self.saved_step = manager, start_step

    def on_tick(self) -> None:
        self.save()

    def save(self) -> None:
        """Writes a checkpoint of the present step, unless it is already there.

        Raises:
            NonFiniteLoss: the step has spoilt the weights; its losses, taken before it, do not show that yet.
            CannotWrite: the checkpoint cannot be written; those before it are as they were.
        """
        if self.step != self.saved_step:
            bad = [weight for weight in self.model.weights if not np.all(np.isfinite(weight.numpy()))]
            if bad:
                first, newest = getattr(bad[0], "path", bad[0].name), self.manager.latest_checkpoint
                raise NonFiniteLoss(
                    f"{len(bad)} variables not finite after step {self.step}, the first of them {first}; "
                    f"last good checkpoint: {newest}"
                )
            with writing(self.manager.directory / f"{checkpoints.STEM}-{self.step}"):
                self.manager.save(checkpoint_number=self.step)
            self.saved_step = self.step


class StopOnSignal(keras.callbacks.Callback):
    """SIGINT and SIGTERM end the training after the running step; a second signal kills as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.received: Optional[str] = None
        self.previous: dict[int, Any] = {}

    def on_train_begin(self, logs=None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        self.received = signal.Signals(number).name
        self.restore()

    def restore(self) -> None:
        """Puts back the handlers that were there before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        if self.received:
            raise Interrupted(self.received)

    def on_train_end(self, logs=None) -> None:
        self.restore()
