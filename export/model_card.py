"""The card that travels with an exported model: conventions of its inputs, and where it came from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Optional

import keras
import tensorflow as tf

from export import signatures
from export.signatures import Signature
from tcp_tf import __version__
from tcp_tf.agreement import Agreement
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config

CONVENTIONS = """\
## Inputs and outputs

- The first axis of every input and output is the batch; `strength` and `weights` are vectors, a number per picture.
- `images` and the like are float32 `[B, H, W, 3]`, RGB, in [0, 1]. Height and width are multiples of {stride}, at least
  {least}, and at most {max_pixels} pixels in all. Style images may have another size than the images.
- `masks` are float32 `[B, H, W, 1]` in [0, 1]: 1 is restyled, 0 stays, soft edges are welcome.
- `strength` in [0, 1] scales the mask. `weights` in [0, 1]: 0 is the look of the first style image, 1 that of the
  second.
- `*_bytes` inputs are JPEG or PNG files. The result has the size of the (upright) image, any size from
  {least} x {least} to {max_pixels} pixels in all; style pictures may have {style_factor} times as many. The mask has
  the image's size; where it is transparent it counts as black.
- `encode_bytes` brings pictures to {resolution} x {resolution} as training did (`{preprocess}`).
- `error` has a sentence for an example that could not be answered, and is empty for the others. The other outputs of
  such an example are empty or zero.
- The same request gives the same bytes: noise is a fixed pattern.
- `serving_default` is `{default}`.
"""


def text(
    autoencoder: AutoEncoder,
    config: Config,
    served: list[Signature],
    max_pixels: int,
    parameters: int,
    checkpoint: Optional[str],
    checked: Optional[Agreement] = None,
) -> str:
    """The card in Markdown.

    Args:
        checked: how near its pictures come to those in float32, where it computes in less.
    """
    conventions = CONVENTIONS.format(
        stride=autoencoder.stride,
        least=signatures.smallest_side(autoencoder),
        max_pixels=max_pixels,
        style_factor=signatures.STYLE_FACTOR,
        resolution=config.data.resolution,
        preprocess=config.data.preprocess,
        default=signatures.DEFAULT,
    )
    inputs = {each.name: ", ".join(f"`{spec.name}` {_shape(spec)}" for spec in each.inputs) for each in served}
    rows = "\n".join(f"| `{name}` | {listed} |" for name, listed in inputs.items())
    return f"""# Region-wise image manipulation, as a SavedModel

An auto-encoder that splits a picture into content (a map) and style (a vector) and puts them together again, so that a
region can take the look of another picture. Method: TCP (arXiv 2108.08674) on the Swapping Autoencoder (arXiv
2007.00653), as implemented by tcp_tf {__version__}.

| | |
|---|---|
| trained on | {", ".join(config.data.all_sources)} at {config.data.resolution} px |
| blending | {autoencoder.strategy} |
| weights | averaged (EMA) encoder and generator, {parameters:,} numbers, {autoencoder.generator.compute_dtype} |
| arithmetic | {_arithmetic(autoencoder, checked)} |
| checkpoint | {"" if checkpoint is None else f"{Path(checkpoint).name}, SHA-256 of its data {_digest(checkpoint)}"} |
| written with | TensorFlow {tf.__version__}, Keras {keras.__version__}; serve with this minor version or newer |

The complete configuration is in `config.yaml` beside this card.

{conventions}
## Signatures

| signature | inputs |
|---|---|
{rows}

## What it is not for

Pictures made by this model are not evidence of anything. It has seen only the data named above and does what it learned
there; look at its results before you use them. Do not use it to deceive about people.
"""


def _arithmetic(autoencoder: AutoEncoder, checked: Optional[Agreement]) -> str:
    name = autoencoder.generator.compute_dtype
    if checked is None:
        return name
    return (
        f"{name}; edits of {checked.pictures} drawn scenes {checked.mean:.1f} dB (PSNR) from those in float32, "
        f"the farthest {checked.least:.1f}"
    )


def _shape(spec: tf.TensorSpec) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in spec.shape.as_list())
    return f"{spec.dtype.name} [{sizes}]"


def _digest(checkpoint: str) -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(checkpoint).parent.glob(Path(checkpoint).name + ".data-*")):
        with open(file, "rb") as data:
            for block in iter(lambda: data.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()
