"""Which variable of ours is which entry of the official Swapping Autoencoder's state dict, and how it is laid out.

The official networks (arXiv 2007.00653, its PyTorch code) and ours compute the same function, so a checkpoint is only a
matter of names and axes. `entries` lists the official state dict in its own order; every entry is either one of our
variables or a constant (the blur filters that the official code keeps as buffers). Values are exactly the same on
both sides: nothing is scaled, only axes are moved.

PyTorch keeps maps as C H W and a kernel as O I H W (output, input, height, width), here it is H W C and H W I O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from tcp_tf.discriminators import Discriminator, PatchDiscriminator
from tcp_tf.encoder import Encoder
from tcp_tf.generator import Generator, HeadBlock, UpBlock
from tcp_tf.layers import Conv, Dense, ModulatedConv, StyledConv

Shape = tuple[int, ...]
# The official code counts its discriminator's steps in the file, to know when R1 is due; ours does not need it.
IGNORED = ("num_discriminator_iters",)
ENCODER_TAPS, TAPS = (1, 2, 1), (1, 3, 3, 1)


class MismatchError(ValueError):
    """A state dict that does not fit the networks: an entry is missing, too many, or of another shape or value."""


class Layout(NamedTuple):
    """How one array is written on both sides; the two functions are each other's inverse, to the last bit."""

    ours: Callable[[np.ndarray], np.ndarray]  # official array -> the array of our variable
    official: Callable[[np.ndarray], np.ndarray]  # and back


class Entry(NamedTuple):
    """One entry of the official state dict."""

    name: str
    shape: Shape  # on the official side
    layout: Optional[Layout]
    variable: Any  # our Keras variable, or None for a constant
    constant: Optional[np.ndarray]  # float32 of `shape`, or None for a variable


VECTOR = Layout(lambda array: array, lambda array: array)
RGB_BIAS = Layout(lambda array: array.reshape(-1), lambda array: array.reshape(1, -1, 1, 1))
DENSE = Layout(np.transpose, np.transpose)  # [out, in] <-> [in, out]
KERNEL = Layout(lambda array: array.transpose(2, 3, 1, 0), lambda array: array.transpose(3, 2, 0, 1))
MODULATED = Layout(lambda array: KERNEL.ours(array[0]), lambda array: KERNEL.official(array)[None])
# A transposed convolution takes [k, k, out, in] here; no tap changes its place.
MODULATED_UP = Layout(lambda array: array[0].transpose(2, 3, 0, 1), lambda array: array.transpose(2, 3, 0, 1)[None])


def flat_dense(parts: int, height: int, width: int) -> Layout:
    """A matrix whose input is one or several flattened maps: `[out, parts C H W]` <-> `[parts H W C, out]`."""

    def ours(array: np.ndarray) -> np.ndarray:
        maps = array.reshape(array.shape[0], parts, -1, height, width)  # out parts C H W
        return maps.transpose(1, 3, 4, 2, 0).reshape(-1, array.shape[0])

    def official(array: np.ndarray) -> np.ndarray:
        maps = array.reshape(parts, height, width, -1, array.shape[1])  # parts H W C out
        return maps.transpose(4, 0, 3, 1, 2).reshape(array.shape[1], -1)

    return Layout(ours, official)


def entries(
    encoder: Encoder, generator: Generator, discriminator: Discriminator, patch_discriminator: PatchDiscriminator
) -> list[Entry]:
    """The official state dict of these networks, in its own order: 223 entries at the default 256 px sizes."""
    return [
        *encoder_entries(encoder),
        *generator_entries(generator),
        *discriminator_entries(discriminator),
        *patch_discriminator_entries(patch_discriminator),
    ]


def check_shapes(wanted: Sequence[Entry], shapes: Mapping[str, Shape]) -> None:
    """Raises MismatchError that names the first entry that is missing, of another shape or too many, in this order."""
    names = {entry.name for entry in wanted}.union(IGNORED)
    extra = [f"{name} of shape {tuple(shape)}" for name, shape in shapes.items() if name not in names]
    missing = [f"{entry.name} of shape {entry.shape}" for entry in wanted if entry.name not in shapes]
    if missing:
        unknown = f"; it has {extra[0]}, which the model has not" if extra else ""
        raise MismatchError(f"the checkpoint lacks {missing[0]}{_more(missing)}{unknown}{_more(extra)}")
    for entry in wanted:
        found = tuple(shapes[entry.name])
        if found != entry.shape:
            raise MismatchError(f"{entry.name}: shape {found} in the checkpoint, {entry.shape} in the model")
    if extra:
        raise MismatchError(f"the checkpoint has {extra[0]}{_more(extra)}, which the model has not")


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def load(wanted: Sequence[Entry], arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns official arrays to our variables; nothing is assigned unless every entry fits.

    Raises:
        MismatchError: an entry is missing, too many, of another shape, not finite, or a blur filter is another one.
    """
    check_shapes(wanted, {name: np.shape(array) for name, array in arrays.items()})
    for entry in wanted:
        array = arrays[entry.name]
        if not np.all(np.isfinite(array)):
            raise MismatchError(f"{entry.name}: holds a NaN or an infinity")
        if entry.constant is not None and not np.allclose(array, entry.constant, rtol=0, atol=1e-6):
            raise MismatchError(f"{entry.name}: another blur filter than the official {entry.constant.tolist()}")
    for entry in wanted:
        if entry.layout is not None:
            entry.variable.assign(np.ascontiguousarray(entry.layout.ours(arrays[entry.name]), np.float32))


def export(wanted: Sequence[Entry]) -> dict[str, np.ndarray]:
    """The official state dict of our variables' present values: float32 arrays under the official names, in order."""
    return {
        entry.name: entry.constant
        if entry.layout is None
        else np.ascontiguousarray(entry.layout.official(np.asarray(entry.variable, np.float32)))
        for entry in wanted
    }


def discriminator_block_name(side: int) -> str:
    """Official name of the image discriminator's block that takes maps of `side` px: 256 -> "1", 512 -> "512x512"."""
    return str(9 - (side.bit_length() - 1)) if side <= 256 else f"{side}x{side}"


def patch_block_name(side: int) -> str:
    """Official name of the patch discriminator's block that takes maps of `side` px: 64 -> "1", 128 -> "128x128"."""
    return str(7 - (side.bit_length() - 1)) if side <= 64 else f"{side}x{side}"


def _variable(name: str, variable: Any, layout: Layout) -> Entry:
    # The shape of a transformed view of nothing: an array without memory has every shape for free.
    shape = layout.official(np.broadcast_to(np.float32(0), tuple(variable.shape))).shape
    return Entry(name, tuple(shape), layout, variable, None)


def _blur(name: str, taps: Sequence[int], gain: float = 1.0) -> Entry:
    kernel = np.outer(taps, taps).astype(np.float32)
    kernel = kernel / kernel.sum() * np.float32(gain)
    return Entry(name, kernel.shape, None, None, kernel)


def _conv(prefix: str, layer: Conv, taps: Optional[Sequence[int]] = None) -> Iterator[Entry]:
    if taps is not None:
        yield _blur(f"{prefix}.Blur.kernel", taps)
    yield _variable(f"{prefix}.Conv.weight", layer.kernel, KERNEL)
    if layer.bias is not None:
        yield _variable(f"{prefix}.{'Act' if layer.activate else 'Conv'}.bias", layer.bias, VECTOR)


def _dense(prefix: str, layer: Dense, layout: Layout = DENSE) -> Iterator[Entry]:
    yield _variable(f"{prefix}.weight", layer.kernel, layout)
    yield _variable(f"{prefix}.bias", layer.bias, VECTOR)


def _residual(prefix: str, block: Any, taps: Optional[Sequence[int]]) -> Iterator[Entry]:
    """An `EncoderBlock` or a `CriticBlock`; `taps` is None where the resolution stays."""
    yield from _conv(f"{prefix}.conv1", block.conv1)
    yield from _conv(f"{prefix}.conv2", block.conv2, taps)
    yield from _conv(f"{prefix}.skip", block.skip, taps)


def encoder_entries(network: Encoder) -> Iterator[Entry]:
    yield from _conv("E.FromRGB", network.from_rgb)
    for i, block in enumerate(network.blocks):
        yield from _residual(f"E.DownToSpatialCode.ResBlockDownBy{2**i}", block, ENCODER_TAPS)
    for i, layer in enumerate(network.to_content):
        yield from _conv(f"E.ToSpatialCode.{i}", layer)
    for i, layer in enumerate(network.to_style):
        yield from _conv(f"E.DownToGlobalCode.ConvLayerDownBy{2 ** (network.downsamples + i)}", layer, (1,))
    yield from _dense("E.ToGlobalCode.0", network.style_dense)


def _modulated(prefix: str, layer: ModulatedConv) -> Iterator[Entry]:
    yield _variable(f"{prefix}.weight", layer.kernel, MODULATED_UP if layer.up else MODULATED)
    if layer.up:
        yield _blur(f"{prefix}.blur.kernel", TAPS, gain=4.0)
    yield from _dense(f"{prefix}.modulation", layer.modulation.affine)


def _styled(prefix: str, layer: StyledConv) -> Iterator[Entry]:
    yield from _modulated(f"{prefix}.conv", layer.conv)
    yield _variable(f"{prefix}.noise.weight", layer.noise_strength, VECTOR)
    yield _variable(f"{prefix}.activate.bias", layer.bias, VECTOR)


def generator_entries(network: Generator) -> Iterator[Entry]:
    first, *blocks, last = network.stages
    heads = [block for block in blocks if isinstance(block, HeadBlock)]
    ups = [block for block in blocks if isinstance(block, UpBlock)]
    yield from _dense("G.SpatialCodeModulation.scale", first.scale.affine)
    yield from _dense("G.SpatialCodeModulation.bias", first.shift.affine)
    prefixes = [f"G.HeadResnetBlock{i}" for i in range(len(heads))]
    prefixes += [f"G.UpsamplingResBlock{16 * 2**i}" for i in range(len(ups))]  # from 16 whatever the resolution
    for prefix, block in zip(prefixes, heads + ups):
        yield from _styled(f"{prefix}.conv1", block.conv1)
        yield from _styled(f"{prefix}.conv2", block.conv2)
        if block.skip is not None:
            yield from _conv(f"{prefix}.skip", block.skip)
    yield _variable("G.ToRGB.bias", last.bias, RGB_BIAS)
    yield _blur("G.ToRGB.upsample.kernel", TAPS, gain=4.0)  # never used there: no RGB skips
    yield from _modulated("G.ToRGB.conv", last.conv)


def discriminator_entries(network: Discriminator) -> Iterator[Entry]:
    yield from _conv("D.stylegan2_D.convs.0", network.from_rgb)
    steps = len(network.blocks)
    for i, block in enumerate(network.blocks):
        yield from _residual(f"D.stylegan2_D.convs.{discriminator_block_name(2 ** (steps + 2 - i))}", block, TAPS)
    yield from _conv("D.stylegan2_D.final_conv", network.final_conv)
    side = network.resolution // 2**steps
    yield from _dense("D.stylegan2_D.final_linear.0", network.dense0, flat_dense(1, side, side))
    yield from _dense("D.stylegan2_D.final_linear.1", network.dense1)


def patch_discriminator_entries(network: PatchDiscriminator) -> Iterator[Entry]:
    yield from _conv("Dpatch.convs.0", network.first)
    for i, block in enumerate(network.blocks):
        yield from _residual(f"Dpatch.convs.{patch_block_name(network.patch_size // 2**i)}", block, TAPS)
    yield from _residual("Dpatch.convs.5", network.widen, None)
    yield from _conv("Dpatch.convs.6", network.last)
    for i, layer in enumerate(network.dense):
        # The first one takes the features of the reference and of the query, one behind the other.
        yield from _dense(f"Dpatch.pairlinear.{i}", layer, flat_dense(2, 2, 2) if i == 0 else DENSE)
