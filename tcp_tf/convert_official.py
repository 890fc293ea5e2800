"""Official Swapping Autoencoder checkpoints (PyTorch) into run directories of ours, and back.

    python -m tcp_tf.convert_official CHECKPOINT.pth --run-dir DIR [--config FILE]
    python -m tcp_tf.convert_official --to-official RUN_DIR OUT.pth [--weights trained]

The first infers the sizes of the networks from the shapes and writes a run directory at step 0: encoder, generator and
both discriminators with the file's weights, the running averages equal to them, fresh optimizers. `--config` gives what
shapes do not tell (data, losses, optimizers). The second writes the official state dict. Neither needs PyTorch.
Exit code 2 and one line for anything that cannot be used; what was to be written is then not there at all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tcp_tf import config as configuration
from tcp_tf import official_names, official_sizes, run_dir, torch_file
from tcp_tf.autoencoder import build_encoder, build_generator
from tcp_tf.config import Config, ConfigError
from tcp_tf.critics import build_discriminator, build_patch_discriminator
from tcp_tf.model import TCP
from tcp_tf.official_names import MismatchError
from tcp_tf.run_dir import RunDirectoryError
from tcp_tf.torch_file import TorchFileError

WEIGHTS = ("averaged", "trained")
STEPS = official_names.IGNORED[0]  # the official file's count of discriminator steps, [1] int64


def from_official(
    checkpoint: Path, directory: Path, base: Optional[Config] = None
) -> tuple[Config, dict[str, Any], int]:
    """Writes a run directory with the weights of an official checkpoint file.

    Args:
        checkpoint: `.pth` file of the official code.
        directory: the run directory to make; it must not exist, or be empty.
        base: everything that shapes do not tell; sizes that it sets must agree.
    Returns:
        The configuration written, the inferred keys by their dotted path, and the number of parameters read.
    Raises:
        TorchFileError: see `torch_file.read`.
        MismatchError: see `load_official`.
        ConfigError: see `official_sizes.configuration`.
        RunDirectoryError: the directory is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RunDirectoryError(f"{directory}: exists already; name a new directory")
    arrays = torch_file.read(checkpoint)
    config, sizes = official_sizes.configuration({name: array.shape for name, array in arrays.items()}, base)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
    try:
        with tf.device("/CPU:0"):
            model = TCP(config)
            load_official(model, arrays)
            model.compile()
            run_dir.write_config(temporary, config)
            run_dir.manager(temporary, model.checkpoint(), config.train.keep_checkpoints).save(checkpoint_number=0)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    parameters = model.encoder, model.generator, model.discriminator, model.patch_discriminator
    return config, sizes, sum(network.count_params() for network in parameters)


def load_official(model: TCP, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives a model the weights of an official state dict; its running averages start at the same weights.

    Raises:
        MismatchError: an entry is missing, too many, of another shape or not finite; the model is then unchanged.
    """
    critics = model.discriminator, model.patch_discriminator
    official_names.load(official_names.entries(model.encoder, model.generator, *critics), arrays)
    official_names.load(official_names.entries(model.encoder_ema, model.generator_ema, *critics), arrays)


def to_official(directory: Path, file: Path, weights: str = "averaged") -> None:
    """Writes a run's newest checkpoint as an official state dict, float32, that the official code loads.

    Args:
        weights: "averaged" takes the running averages of encoder and generator, "trained" the weights in training; the
            discriminators have no averages.
    Raises:
        RunDirectoryError: no run directory, no checkpoint, or one without all four networks.
        FileExistsError: `file` is there already.
    """
    if file.exists():
        raise FileExistsError(f"{file}: exists already; name a new file")
    config = run_dir.read_config(directory)
    prefix = run_dir.latest_checkpoint(directory)
    if prefix is None:
        raise RunDirectoryError(f"{directory}: no checkpoint in {run_dir.CHECKPOINTS}/ yet")
    suffix = "_ema" if weights == "averaged" else ""
    with tf.device("/CPU:0"):
        encoder, generator = build_encoder(config), build_generator(config)
        critics = build_discriminator(config), build_patch_discriminator(config)
        step = tf.Variable(0, dtype=tf.int64)
        parts = {f"encoder{suffix}": encoder, f"generator{suffix}": generator, "discriminator": critics[0]}
        model = tf.train.Checkpoint(**parts, patch_discriminator=critics[1], step=step)
        try:
            status = tf.train.Checkpoint(model=model).restore(prefix)
            status.assert_existing_objects_matched().expect_partial()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RunDirectoryError(
                f"{prefix}: does not hold the four networks of its configuration: {reason}"
            ) from error
    arrays = official_names.export(official_names.entries(encoder, generator, *critics))
    torch_file.write(file, {**arrays, STEPS: np.asarray([step.numpy()], np.int64)})


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tcp_tf.convert_official",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, help="file of the official code, NAME.pth")
    parser.add_argument("--run-dir", type=Path, help="run directory to make from it")
    parser.add_argument("--config", type=Path, help="experiment for everything that shapes do not tell")
    parser.add_argument("--to-official", nargs=2, type=Path, metavar=("RUN_DIR", "OUT.pth"), help="the way back")
    parser.add_argument("--weights", choices=WEIGHTS, help="with --to-official (default: averaged)")
    options = parser.parse_args(arguments)
    if options.to_official and (options.checkpoint or options.run_dir or options.config):
        parser.error("--to-official takes RUN_DIR and OUT.pth, and neither a checkpoint nor --run-dir or --config")
    if not options.to_official and not (options.checkpoint and options.run_dir):
        parser.error("CHECKPOINT.pth and --run-dir are needed, or --to-official")
    if not options.to_official and options.weights:
        parser.error("--weights goes with --to-official; a conversion starts both from the file's weights")
    return options


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command. Returns the exit code: 0, or 2 for input that cannot be used."""
    options = parse(arguments)
    try:
        if options.to_official:
            directory, file = options.to_official
            to_official(directory, file, options.weights or WEIGHTS[0])
            print(f"wrote {file}")
        else:
            base = configuration.load(options.config) if options.config else None
            config, sizes, parameters = from_official(options.checkpoint, options.run_dir, base)
            print(f"read {options.checkpoint}: {parameters:,} parameters")
            print("inferred from the shapes: " + ", ".join(f"{path}={value}" for path, value in sizes.items()))
            print(f"wrote {options.run_dir} (step 0, data.source={config.data.source})")
    except (TorchFileError, MismatchError, ConfigError, RunDirectoryError, OSError) as error:
        print("convert_official: " + "; ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
