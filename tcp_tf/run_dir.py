"""A run directory: everything that one training leaves behind, and how it is read again.

    RUN/config.yaml          the complete configuration
    RUN/checkpoints/         networks, averages, both optimizers, the step; rotated
    RUN/metrics.jsonl        one line of metrics per tick
    RUN/tensorboard/         the same as curves, and the picture grids
    RUN/grids/*.png          picture grids

What is shipped with the code (`pretrained/...`) and what is converted from elsewhere has the same shape, at least
`config.yaml` and `checkpoints/`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Optional, Union

import tensorflow as tf

from tcp_tf import config as configuration
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"

PathLike = Union[str, Path]


class RunDirectoryError(ValueError):
    """A run directory that cannot be used; one line that names it and says why."""


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


def manager(run_dir: PathLike, checkpoint: tf.train.Checkpoint, keep: int) -> tf.train.CheckpointManager:
    """The checkpoint manager of a run: the newest `keep` checkpoints stay."""
    return tf.train.CheckpointManager(checkpoint, str(Path(run_dir) / CHECKPOINTS), max_to_keep=keep)


def latest_checkpoint(run_dir: PathLike) -> Optional[str]:
    """Prefix of the newest checkpoint, or None where there is none."""
    return tf.train.latest_checkpoint(str(Path(run_dir) / CHECKPOINTS))


def write_averages(run_dir: PathLike, autoencoder: AutoEncoder) -> None:
    """Writes a checkpoint of nothing but these networks, as a run's averages, for `load_autoencoder`."""
    networks = tf.train.Checkpoint(encoder_ema=autoencoder.encoder, generator_ema=autoencoder.generator)
    manager(run_dir, tf.train.Checkpoint(model=networks), keep=1).save()


def load_autoencoder(run_dir: PathLike) -> tuple[AutoEncoder, Config]:
    """The averaged encoder and generator of a run's newest checkpoint, in float32 unless the global policy says other.

    Raises:
        RunDirectoryError: no configuration, no checkpoint, or one that does not fit the configuration.
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
