"""A run directory: everything that one training leaves behind, and how it is read again.

    RUN/config.yaml          the complete configuration
    RUN/checkpoints/         networks, averages, both optimizers, the step; rotated, see `tcp_tf.checkpoints`
    RUN/metrics.jsonl        one line of metrics per tick
    RUN/tensorboard/         the same as curves, and the picture grids
    RUN/grids/*.png          picture grids
    RUN/.lock                who is training in it

What is shipped with the code (`pretrained/...`) and what is converted from elsewhere has the same shape, at least
`config.yaml` and `checkpoints/`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional, Union

import tensorflow as tf

from tcp_tf import checkpoints
from tcp_tf import config as configuration
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.checkpoints import RunDirectoryError
from tcp_tf.config import Config

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"

PathLike = Union[str, Path]

log = logging.getLogger(__name__)


@contextlib.contextmanager
def claimed(run_dir: PathLike) -> Iterator[None]:
    """Holds a run directory, made where needed, for one training alone.

    The operating system holds the lock for the open file and drops it when the process ends, however it ends; the
    file that stays behind means nothing. On a network file system it is as good as that system's locks.

    Raises:
        RunDirectoryError: another training holds it; the line names its process.
    """
    import fcntl  # missing on Windows, where the models can be used all the same

    path = Path(run_dir)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunDirectoryError(
                f"{run_dir}: {holder} is training in it; let it end, or choose another run directory"
            ) from None
        except OSError as error:
            log.warning("%s: cannot be locked (%s); no second training may use it", run_dir, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for leftover in path.glob(".config-*"):
            leftover.unlink()
        try:
            yield
        finally:
            file.truncate(0)


def write_config(run_dir: PathLike, config: Config) -> None:
    """Writes `RUN/config.yaml` whole or not at all, making the directory where needed."""
    path = Path(run_dir)
    path.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path, prefix=".config-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(configuration.dump(config))
    os.replace(temporary, path / CONFIG)


def read_config(run_dir: PathLike) -> Config:
    """The configuration of a run.

    Raises:
        RunDirectoryError: there is none.
        ConfigError: it is not valid.
    """
    file = Path(run_dir) / CONFIG
    if not file.is_file():
        raise RunDirectoryError(f"{run_dir}: not a run directory, it has no {CONFIG}")
    return configuration.load(file)


def manager(
    run_dir: PathLike,
    checkpoint: tf.train.Checkpoint,
    keep: int,
    say: Callable[[str], None] = log.warning,
    read_only: bool = False,
) -> checkpoints.Manager:
    """The checkpoint manager of a run: the newest `keep` checkpoints stay.

    Raises:
        RunDirectoryError: there are checkpoints, but none is whole.
    """
    return checkpoints.Manager(Path(run_dir) / CHECKPOINTS, checkpoint, keep, say, read_only)


def latest_checkpoint(run_dir: PathLike) -> Optional[str]:
    """Prefix of the newest whole checkpoint, or None where there is none; a damaged newer one is warned of.

    Raises:
        RunDirectoryError: there are checkpoints, but none is whole.
    """
    return checkpoints.newest(Path(run_dir) / CHECKPOINTS)


def write_averages(run_dir: PathLike, autoencoder: AutoEncoder) -> None:
    """Writes a checkpoint of nothing but these networks, as a run's averages, for `load_autoencoder`."""
    networks = tf.train.Checkpoint(encoder_ema=autoencoder.encoder, generator_ema=autoencoder.generator)
    manager(run_dir, tf.train.Checkpoint(model=networks), keep=1).save()


def load_autoencoder(run_dir: PathLike) -> tuple[AutoEncoder, Config]:
    """The averaged encoder and generator of a run's newest checkpoint, as they are trained.

    Raises:
        RunDirectoryError: no configuration, no whole checkpoint, or one that does not fit the configuration.
    """
    config = read_config(run_dir)
    prefix = latest_checkpoint(run_dir)
    if prefix is None:
        raise RunDirectoryError(f"{run_dir}: no checkpoint in {CHECKPOINTS}/ yet")
    autoencoder = AutoEncoder.from_config(config)
    networks = tf.train.Checkpoint(encoder_ema=autoencoder.encoder, generator_ema=autoencoder.generator)
    try:
        # Shapes are checked while reading, presence of every variable by the assertion.
        tf.train.Checkpoint(model=networks).restore(prefix).expect_partial().assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunDirectoryError(f"{prefix}: does not hold the networks of {CONFIG}: {reason}") from error
    return autoencoder, config
