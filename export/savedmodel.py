"""Writes a trained model as a SavedModel that TensorFlow Serving loads: `DIR/<version>/`, whole or not at all.

DIR/3/saved_model.pb, variables/          the graph of every signature, each weight once
DIR/3/assets.extra/config.yaml            the configuration of the training
DIR/3/assets.extra/MODEL_CARD.md          what goes in, what comes out, what it came from
DIR/3/assets.extra/tf_serving_warmup_requests
                                          a request per signature that the server runs before it takes others
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Optional, Union

import keras

from export import audit, model_card, signatures, warmup
from tcp_tf import agreement
from tcp_tf import config as configuration
from tcp_tf import run_dir as run_directory
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config

PathLike = Union[str, Path]

EXACT = "float32"
EXTRA = "assets.extra"
CONFIG = "config.yaml"
MODEL_CARD = "MODEL_CARD.md"
WARMUP = "tf_serving_warmup_requests"


class ExportError(ValueError):
    """An export that cannot be made; one line that says why."""


def export(
    run_dir: PathLike,
    output: PathLike,
    version: Optional[int] = None,
    max_pixels: int = signatures.MAX_PIXELS,
    precision: str = EXACT,
) -> Path:
    """Exports the averaged encoder and generator of a run's newest checkpoint.

    Args:
        output: the model's base directory; made where needed.
        version: default one more than the highest there.
        max_pixels: bound on height times width of the pictures that the model will edit.
        precision: of the networks' arithmetic and weights, one of `config.PRECISIONS`, whatever this process computes
            in otherwise.
    Returns:
        The directory of the version.
    Raises:
        ExportError: the version exists or is not a positive number, `max_pixels` is less than a picture in training
            has, or its pictures in this precision are too far from those in float32 (`agreement.LEAST_PSNR`).
        ValueError: there is no such precision.
        RunDirectoryError: the run has no checkpoint, or one that does not fit its configuration.
        AuditError: what was written is not what a server can load.
    """
    trained, config = run_directory.load_autoencoder(run_dir)
    autoencoder = trained.folded(config, precision)
    least = max(signatures.smallest_side(autoencoder), config.data.resolution) ** 2
    if max_pixels < least:
        raise ExportError(f"max_pixels must be at least {least}, a picture as in training, got {max_pixels}")
    served = signatures.build(autoencoder, config, max_pixels)
    base = Path(output)
    target = base / str(next_version(base) if version is None else _free(base, version))
    checked = None if precision == EXACT else _checked(autoencoder, trained.folded(config), config)
    base.mkdir(parents=True, exist_ok=True)
    # A server looks at directories whose names are integers only, so this one is invisible to it.
    temporary = Path(tempfile.mkdtemp(dir=base, prefix=f".{target.name}-"))
    try:
        write(served, temporary)
        parameters = sum(math.prod(weight.shape) for weights in autoencoder.weights for weight in weights)
        audit.check(temporary, parameters)
        extra = temporary / EXTRA
        extra.mkdir()
        (extra / CONFIG).write_text(configuration.dump(config), encoding="utf-8")
        checkpoint = run_directory.latest_checkpoint(run_dir)
        card = model_card.text(autoencoder, config, served, max_pixels, parameters, checkpoint, checked)
        (extra / MODEL_CARD).write_text(card, encoding="utf-8")
        warmup.write(extra / WARMUP, served, autoencoder, config)
        temporary.chmod(0o755)  # mkdtemp gives the owner alone the right to read; a server runs as somebody else
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _checked(autoencoder: AutoEncoder, exact: AutoEncoder, config: Config) -> agreement.Agreement:
    """How near the pictures of a coarser arithmetic come to those in float32; refuses one that does not suffice."""
    found = agreement.measure(autoencoder, exact, config.data.resolution)
    if not found.mean >= agreement.LEAST_PSNR:
        raise ExportError(
            f"in {autoencoder.generator.compute_dtype} this model's edits are {found.mean:.1f} dB (PSNR) from those in "
            f"{EXACT}, {agreement.LEAST_PSNR:g} are wanted: export it in {EXACT}"
        )
    return found


def next_version(base: Path) -> int:
    """One more than the highest version in a model's base directory, 1 where there is none."""
    taken = [int(entry.name) for entry in base.iterdir() if entry.name.isdecimal()] if base.is_dir() else []
    return max(taken, default=0) + 1


def _free(base: Path, version: int) -> int:
    if version < 1:
        raise ExportError(f"version must be 1 or more, got {version}")
    if (base / str(version)).exists():
        raise ExportError(f"{base / str(version)} exists already; versions are not overwritten")
    return version


def write(served: list[signatures.Signature], directory: Path) -> None:
    """The SavedModel alone, without the checks and the files beside it that `export` adds.

    `ExportArchive` because a `tf.Module` around Keras 3 layers loads in Python and fails in a server; without
    `track()`, which would write every weight twice. The first endpoint becomes `serving_default` as well.
    """
    archive = keras.export.ExportArchive()
    for signature in served:
        archive.add_endpoint(signature.name, signature.function, input_signature=list(signature.inputs))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints pages, and Keras 2 knows no way to ask it not to
        archive.write_out(str(directory))
