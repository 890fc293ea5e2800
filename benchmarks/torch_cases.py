"""The PyTorch side's cases, in the process that measures one of them. No TensorFlow is loaded here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

from benchmarks import measuring
from benchmarks.children import DECODE, ENCODE, SIZES, STEP, STYLE_MAP, TRAINING, WEIGHTS, Request
from benchmarks.reference_torch import Networks, Objectives
from tcp_tf import config as configuration
from tcp_tf.config import Config

FLAGS = ("eager", "compiled", "channels_last", "ungrouped", "bfloat16")


def flags_of(mode: str) -> set[str]:
    """`compiled+channels_last` -> {"compiled", "channels_last"}.

    `eager` or `compiled`; `channels_last` is PyTorch's other memory format; `ungrouped` runs modulated convolutions as
    ordinary ones (see `reference_torch`); `bfloat16` is autocast.

    Raises:
        ValueError: a part is none of FLAGS, or the mode is both eager and compiled, or neither.
    """
    flags = set(mode.split("+"))
    unknown = flags - set(FLAGS)
    if unknown or ("eager" in flags) == ("compiled" in flags):
        raise ValueError(f"a PyTorch mode is eager or compiled, and with + any of {FLAGS[2:]}, got {mode!r}")
    return flags


def load_networks(directory: Path, grouped: bool) -> Networks:
    """The networks of `agreement.write`; with the weights that they were drawn with where there are none."""
    networks = Networks(json.loads((directory / SIZES).read_text(encoding="utf-8")), grouped)
    if (directory / WEIGHTS).exists():
        with np.load(directory / WEIGHTS) as stored:
            networks.load([stored[name] for name in stored.files])
    return networks


def run(request: Request) -> dict[str, Any]:
    """Measures one case in one mode; keys as those of `cases.run`, without `flops`.

    Raises:
        ValueError: no such case or mode.
    """
    return prepared(request)(request.seconds)


def prepared(request: Request) -> Callable[[float], dict[str, Any]]:
    """A function that measures one case in one mode for so many seconds, as often as it is called; see `run`."""
    config = configuration.load(request.config, request.overrides)
    flags = flags_of(request.side)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = load_networks(Path(str(request.weights)), "ungrouped" not in flags).to(device)
    layout = torch.channels_last if "channels_last" in flags else torch.contiguous_format
    networks.to(memory_format=layout)
    if "compiled" in flags:
        compile_parts(networks)
    torch.manual_seed(0)
    side = config.data.resolution
    images = torch.rand(request.batch, 3, side, side, device=device).mul(2).sub(1).to(memory_format=layout)
    precision = torch.autocast(device.type, torch.bfloat16) if "bfloat16" in flags else contextlib.nullcontext()
    function = train if request.case in TRAINING else infer

    def measure(seconds: float) -> dict[str, Any]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with precision:
            result = function(config, networks, images, dataclasses.replace(request, seconds=seconds))
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else measuring.peak_memory()
        return {**result, "images": request.batch, "peak_bytes": memory, "torch": torch.__version__}

    return measure


def compile_parts(networks: Networks) -> None:
    """torch.compile of each network by itself, in place."""
    for network in (networks.encoder, networks.generator, networks.discriminator, networks.patch_discriminator):
        network.compile()
    critic: Any = networks.patch_discriminator
    critic.features = torch.compile(critic.features)


def timed(call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """`measuring.summary` of a call, the GPU waited for; two calls before are not timed."""

    def finished() -> None:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return measuring.summary(measuring.measure(finished, seconds, warm_up=2))


def infer(config: Config, networks: Networks, images: torch.Tensor, request: Request) -> dict[str, Any]:
    """Encode, decode or masked blend by mixed styles."""
    networks.requires_grad_(False)
    batch, side = len(images), images.shape[2]
    with torch.inference_mode():
        if request.case == ENCODE:
            return timed(lambda: networks.encoder(images), request.seconds)
        if request.case == DECODE:
            place = side // 2**config.model.downsamples
            content = torch.randn(batch, config.model.content_dim, place, place, device=images.device)
            style = torch.randn(batch, config.model.style_dim, device=images.device)
            return timed(lambda: networks.generator(content, style), request.seconds)
        if request.case == STYLE_MAP:
            regions = request.regions
            looks = torch.rand(batch, regions, 3, side, side, device=images.device) * 2 - 1
            masks = torch.from_numpy(measuring.stripes(batch, regions, side)[..., 0]).to(images.device)
            return timed(lambda: networks.masked_blend(images, looks, masks), request.seconds)
    raise ValueError(f"no such case on the PyTorch side: {request.case!r}")


def train(config: Config, networks: Networks, images: torch.Tensor, request: Request) -> dict[str, Any]:
    """The discriminators' step, the generator's, or both and R1 by its share of the steps.

    Adds `phases` to the last: name -> {share, median_s, spread, repeats}.
    """
    gammas = config.loss.r1_gamma, config.loss.patch_r1_gamma
    objectives = Objectives(networks, config.loss.weights, config.model.patch_size, gammas)
    rate, every = config.optimizer.generator.learning_rate, config.loss.r1_every
    generated = [*networks.encoder.parameters(), *networks.generator.parameters()]
    critics = [*networks.discriminator.parameters(), *networks.patch_discriminator.parameters()]
    sides: dict[str, tuple[Callable[..., torch.Tensor], list[Any], torch.optim.Optimizer]] = {}
    adam_g = torch.optim.Adam(generated, rate, (0.0, 0.99))
    adam_d = torch.optim.Adam(critics, rate * every / (every + 1), (0.0, 0.99 ** (every / (every + 1))))
    sides["discriminator_part"] = objectives.discriminators, critics, adam_d
    sides["generator_part"] = objectives.generator, generated, adam_g
    sides["r1"] = objectives.r1, critics, adam_d
    sizes = torch.rand(len(images), 3, config.patches.crops, 2) * 0.125 + 0.125
    boxes = torch.cat([torch.rand_like(sizes) * (1 - sizes), sizes], dim=-1).to(images.device)

    def step(name: str) -> None:
        loss, parameters, optimizer = sides[name]
        for parameter in networks.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        value = loss(images, boxes)
        (value * (every if name == "r1" else 1)).backward()
        optimizer.step()

    if request.case != STEP:
        return timed(lambda: step(request.case), request.seconds)
    parts = {}
    for name in sides:
        share = 1 / every if name == "r1" else 1.0
        parts[name] = {"share": share, **timed(functools.partial(step, name), request.seconds / len(sides))}
    return {
        "median_s": sum(part["share"] * part["median_s"] for part in parts.values()),
        "spread": max(part["spread"] for part in parts.values()),
        "repeats": min(part["repeats"] for part in parts.values()),
        "phases": parts,
    }
