"""Infers from an official checkpoint's shapes which of our configurations describes the same networks.

The official file holds no settings. Depths are counted from the names, code lengths read off where several entries
agree, and capacities are the simplest decimal number that gives the widths found. Where one entry contradicts the
others the majority counts, and the exact check against the networks (`official_names.check_shapes`) then names it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

from tcp_tf.config import Config, ConfigError, from_dict
from tcp_tf.discriminators import discriminator_widths, patch_widths
from tcp_tf.encoder import encoder_widths
from tcp_tf.generator import generator_widths
from tcp_tf.official_names import MismatchError, Shape, discriminator_block_name, patch_block_name

# The official code's own bases, on whose widths its capacities are factors. Networks that were trained here under other
# ones and then exported are recognised too.
CHANNELS, MAX_CHANNELS = 32, 512
MAX_DIGITS = 6  # of a capacity, after the point
MAX_BLOCKS = 16
FIRST = "E.FromRGB.Conv.weight"

Widths = list[Optional[int]]  # None where the entry that would tell is missing
Formula = Callable[[float], list[int]]  # capacity -> widths


def configuration(shapes: Mapping[str, Shape], base: Optional[Config] = None) -> tuple[Config, dict[str, Any]]:
    """The configuration of the networks that an official checkpoint holds.

    Args:
        shapes: official names and shapes.
        base: gives everything that shapes do not tell, and the sizes that it sets itself, which must agree.
    Returns:
        The configuration, and the inferred keys by their dotted path.
    Raises:
        MismatchError: a whole part of the model is missing.
        ConfigError: `base` sets a size that contradicts the shapes, or the sizes are none that we can build.
    """
    base = Config() if base is None else base
    set_by_base = base.model.model_fields_set
    max_channels = base.model.max_channels if "max_channels" in set_by_base else _max_channels(shapes)
    bases = [base.model.channels] if "channels" in set_by_base else _bases(shapes)
    # The first of the best: the official base unless the other one explains more widths.
    sizes, widths, _ = max((_sizes(shapes, channels, max_channels) for channels in bases), key=lambda found: found[2])
    values = base.model_dump(exclude_unset=True)
    for path, found in sizes.items():
        section, key = path.split(".")
        given = values.setdefault(section, {}).setdefault(key, found)
        same = given == found or (path in widths and widths[path](given) == widths[path](found))
        if not same:
            raise ConfigError(f"{path}: the configuration says {given}, the checkpoint's shapes say {found}")
    return from_dict(values), sizes


def _sizes(
    shapes: Mapping[str, Shape], channels: int, max_channels: int
) -> tuple[dict[str, Any], dict[str, Formula], int]:
    """The inferred keys, for each capacity among them the formula of the widths, and how many widths they explain."""
    downs = _numbers(shapes, r"E\.DownToSpatialCode\.ResBlockDownBy(\d{1,9})\.")
    downsamples = max(downs).bit_length()
    factors = [shape for name, shape in shapes.items() if name.endswith(".modulation.weight") and len(shape) == 2]
    content = [shape for name, shape in shapes.items() if name.startswith("G.SpatialCodeModulation.") and shape]
    style_dim = _majority("G.*.modulation.weight", (shape[1] for shape in factors))
    content_dim = _majority("G.SpatialCodeModulation.*", (shape[0] for shape in content))
    steps = len(_blocks(shapes, "D.stylegan2_D.convs.", discriminator_block_name))
    patch_steps = len(_blocks(shapes, "Dpatch.convs.", patch_block_name))

    formulas: dict[str, Formula] = {
        "model.encoder_capacity": lambda capacity: encoder_widths(channels, downsamples, style_dim, capacity),
        "model.generator_capacity": lambda capacity: generator_widths(
            4 * channels, max_channels, downsamples, capacity
        ),
        "model.discriminator_capacity": lambda capacity: discriminator_widths(
            steps, 4 * channels, max_channels, capacity
        ),
        "model.patch_capacity": lambda capacity: patch_widths(patch_steps, channels, max_channels * 3 // 4, capacity),
    }
    found = {
        "model.encoder_capacity": _encoder_widths(shapes, downsamples),
        "model.generator_capacity": _generator_widths(shapes, downsamples),
        "model.discriminator_capacity": _critic_widths(
            shapes, "D.stylegan2_D.convs.", discriminator_block_name, "D.stylegan2_D.final_conv"
        ),
        "model.patch_capacity": _critic_widths(shapes, "Dpatch.convs.", patch_block_name, "Dpatch.convs.5.skip"),
    }
    capacities = {path: capacity(found[path], formula) for path, formula in formulas.items()}
    sizes = {
        "data.resolution": _final_side(shapes) * 2**steps,
        "model.channels": channels,
        "model.max_channels": max_channels,
        "model.downsamples": downsamples,
        "model.content_dim": content_dim,
        "model.style_dim": style_dim,
        "model.patch_size": 4 * 2**patch_steps,
        **capacities,
    }
    return sizes, formulas, sum(_hits(found[path], formulas[path](value)) for path, value in capacities.items())


def capacity(found: Sequence[Optional[int]], widths: Formula) -> float:
    """The number with the fewest digits for which most of `found` come out of `widths`: (13, 26, 51, 102) -> 0.4."""
    plain = widths(1.0)
    candidates = {1.0}
    for width, one in zip(found, plain):
        if width is not None:
            for digits in range(1, MAX_DIGITS + 1):
                scaled = width / max(1, one) * 10**digits
                candidates.update(round(rounding(scaled)) / 10**digits for rounding in (math.floor, math.ceil))

    def fit(candidate: float) -> tuple[int, int, float]:
        return _hits(found, widths(candidate)), -len(repr(candidate)), -abs(candidate - 1)

    return max((candidate for candidate in candidates if candidate > 0), key=fit)


def _hits(found: Sequence[Optional[int]], widths: Sequence[int]) -> int:
    return sum(width == other for width, other in zip(found, widths))


def _numbers(shapes: Mapping[str, Shape], pattern: str) -> list[int]:
    numbers = [int(match[1]) for match in (re.match(pattern, name) for name in shapes) if match]
    if not numbers:
        raise MismatchError(f"no entry like {_plain(pattern)}: not a checkpoint of the official Swapping Autoencoder")
    return numbers


def _plain(pattern: str) -> str:
    return pattern.replace(r"(\d{1,9})", "1").replace("\\", "") + "*"


def _majority(what: str, values: Iterable[int]) -> int:
    counts = Counter(values)
    if not counts:
        raise MismatchError(f"no entry like {what}: not a checkpoint of the official Swapping Autoencoder")
    return counts.most_common(1)[0][0]


def _blocks(shapes: Mapping[str, Shape], prefix: str, block_name: Callable[[int], str]) -> list[str]:
    """Prefixes of a critic's halving blocks, from the largest maps to 8 px: the last one present decides the depth."""
    names = [f"{prefix}{block_name(8 * 2**i)}." for i in range(MAX_BLOCKS)]
    present = [i for i, name in enumerate(names) if any(entry.startswith(name + "conv") for entry in shapes)]
    if not present:
        raise MismatchError(f"no entry like {names[0]}*: the checkpoint lacks this discriminator")
    return names[: present[-1] + 1][::-1]


def _width(shapes: Mapping[str, Shape], *places: tuple[str, int]) -> Optional[int]:
    """A width that several entries tell, each as (name, axis): what most of them say."""
    counts = Counter(shapes[name][axis] for name, axis in places if len(shapes.get(name, ())) > axis)
    return counts.most_common(1)[0][0] if counts else None


def _conv_width(shapes: Mapping[str, Shape], prefix: str, reader: str) -> Optional[int]:
    """Width that the convolution `prefix` gives and the one called `reader` takes."""
    return _width(shapes, (f"{prefix}.Conv.weight", 0), (f"{prefix}.Act.bias", 0), (f"{reader}.Conv.weight", 1))


def _encoder_widths(shapes: Mapping[str, Shape], downsamples: int) -> Widths:
    blocks = [f"E.DownToSpatialCode.ResBlockDownBy{2**i}" for i in range(downsamples)]
    heads = [f"E.DownToGlobalCode.ConvLayerDownBy{2 ** (downsamples + i)}" for i in range(2)]
    writers = ["E.FromRGB", *(f"{block}.conv2" for block in blocks), *heads]
    readers = [*(f"{block}.skip" for block in blocks), *heads, "E.ToGlobalCode.0"]
    return [_conv_width(shapes, writer, reader) for writer, reader in zip(writers, readers)]


def _generator_widths(shapes: Mapping[str, Shape], downsamples: int) -> Widths:
    layers = ["G.HeadResnetBlock1.conv2", *(f"G.UpsamplingResBlock{16 * 2**i}.conv2" for i in range(downsamples))]
    return [
        _width(shapes, (f"{layer}.conv.weight", 1), (f"{layer}.conv.weight", 2), (f"{layer}.activate.bias", 0))
        for layer in layers
    ]


def _critic_widths(shapes: Mapping[str, Shape], prefix: str, block_name: Callable[[int], str], last: str) -> Widths:
    blocks = [name.rstrip(".") for name in _blocks(shapes, prefix, block_name)]
    writers = [f"{prefix}0", *(f"{block}.conv2" for block in blocks)]
    readers = [*(f"{block}.skip" for block in blocks), last]
    return [_conv_width(shapes, writer, reader) for writer, reader in zip(writers, readers)]


def _bases(shapes: Mapping[str, Shape]) -> list[int]:
    """Candidates for `model.channels`: the official one, and those that make a capacity 1."""
    first = _width(shapes, (FIRST, 0)) or CHANNELS
    last = _width(shapes, ("G.ToRGB.conv.weight", 2)) or 4 * CHANNELS
    return [CHANNELS, first, max(1, last // 4)]


def _max_channels(shapes: Mapping[str, Shape]) -> int:
    """A quarter of the patch discriminator's hidden width, which no capacity changes: 512 in every official model."""
    width = _width(shapes, *((f"Dpatch.pairlinear.{name}", 0) for name in ("0.weight", "0.bias", "1.weight")))
    return (width or 0) // 4 or MAX_CHANNELS


def _final_side(shapes: Mapping[str, Shape]) -> int:
    """Side of the image discriminator's last maps: 4, or 3 for pictures of 768 px."""
    flat = _width(shapes, ("D.stylegan2_D.final_linear.0.weight", 1))
    width = _conv_width(shapes, "D.stylegan2_D.final_conv", "D.stylegan2_D.final_conv")
    return round(math.sqrt(flat / width)) if flat and width else 4
