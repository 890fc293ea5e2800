"""Our own cases, in the process that measures one of them: what is built, what is called, what it costs."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks import flops, measuring
from benchmarks.children import CEILING, DECODE, ENCODE, INFERENCE, PIPELINE, SERVED, STEP, TRAINING, Request
from export import savedmodel, signatures
from tcp_tf import answers, data, metrics, sources, training, winograd
from tcp_tf import config as configuration
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config
from tcp_tf.discriminators import Discriminator, PatchDiscriminator
from tcp_tf.model import TCP

PHOTOGRAPHS, QUALITY = 48, 90  # files of the pipeline's folder, and their JPEG quality
PHOTOGRAPH_MARGIN = 1.5  # their short side over that of the training pictures


def run(request: Request) -> dict[str, Any]:
    """Measures one case; the keys are those of `measuring.summary` and, where they mean something, `flops`, `images`,
    `peak_bytes` and what the case adds. FLOPs are counted after the peak is read, since that takes memory.

    Raises:
        ValueError: no such case.
    """
    if request.replicas > 1 and not tf.config.list_physical_devices("GPU"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * request.replicas)
    sizes = [f"data.batch_size={request.batch}", f"replicas={request.replicas}"]
    if request.case != STEP:
        sizes.append("train.concurrent=1")  # one side's gradients are taken of all pictures at once
    config = configuration.load(request.config, [*request.overrides, *(sizes if request.case in TRAINING else [])])
    keras.mixed_precision.set_global_policy(config.mixed_precision)
    if request.case == CEILING:
        return ceiling(config, request.seconds)
    if request.case == PIPELINE:
        return pipeline(config, request.batch, request.seconds)
    if request.case in INFERENCE:
        return inference(config, request)
    if request.case == SERVED:
        return served(config, request)
    if request.case == STEP:
        return training_step(config, request.seconds)
    if request.case in TRAINING:
        return training_part(config, request.case, request.seconds)
    raise ValueError(f"no such case: {request.case!r}")


def machine() -> dict[str, Any]:
    """What the figures belong to: the accelerator, if any, the CPU's model, the number of cores, the versions."""
    devices = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(device).get("device_name", "GPU") for device in devices]
    return {
        "cpu": measuring.cpu_name(),
        "cores": measuring.cores(),
        "gpus": details,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def peak_bytes() -> int:
    """Peak memory of this process: of the first GPU where there is one, else resident."""
    if tf.config.list_logical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return measuring.peak_memory()


def timed(call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """`measuring.summary` of a call, devices waited for; the tracing and two more calls are not timed."""

    def finished() -> None:
        call()
        tf.test.experimental.sync_devices()

    return measuring.summary(measuring.measure(finished, seconds, warm_up=2))


def ceiling(config: Config, seconds: float) -> dict[str, Any]:
    """FLOP/s of a large matrix product and a typical convolution in the configuration's dtype; the best of all calls.

    2048 x 2048 x 2048, and 256 to 256 channels, 3x3, on eight maps of 64 x 64, channels last.
    """
    dtype = keras.mixed_precision.global_policy().compute_dtype
    square = tf.cast(tf.random.normal([2048, 2048]), dtype)
    maps = tf.cast(tf.random.normal([8, 64, 64, 256]), dtype)
    kernel = tf.cast(tf.random.normal([3, 3, 256, 256]), dtype)
    matmul = tf.function(tf.matmul).get_concrete_function(square, square)
    convolution = tf.function(lambda x, k: tf.nn.conv2d(x, k, 1, "SAME")).get_concrete_function(maps, kernel)
    result: dict[str, Any] = {"dtype": dtype, **machine()}
    for name, function, operands in (
        ("matmul", matmul, (square, square)),
        ("convolution", convolution, (maps, kernel)),
    ):

        def call(function: Any = function, operands: Any = operands) -> None:
            function(*operands)
            tf.test.experimental.sync_devices()

        result[name] = flops.total(function) / min(measuring.measure(call, seconds / 2, warm_up=3))
    return result


def random_images(count: int, side: int, seed: int) -> tf.Tensor:
    """Uniform noise in [-1, 1], `[N, side, side, 3]`."""
    return tf.random.stateless_uniform([count, side, side, 3], [seed, 0], -1.0, 1.0)


def inference(config: Config, request: Request) -> dict[str, Any]:
    """Encode, decode or masked blend of a batch, as one traced function of fixed shapes.

    In less than float32, pictures have `psnr_to_float32`: how near they come to what the same weights give in float32.
    """
    trained = AutoEncoder.from_config(config)
    autoencoder = trained.folded(config, config.mixed_precision)
    function, inputs = inference_call(autoencoder, config, request)
    concrete = tf.function(function, autograph=False).get_concrete_function(*inputs)
    result = timed(lambda: concrete(*inputs), request.seconds)
    result = {**result, "images": request.batch, "peak_bytes": peak_bytes()}
    result["flops"] = asked_flops(function, *inputs)
    if keras.mixed_precision.global_policy().compute_dtype != "float32" and request.case != ENCODE:
        result["psnr_to_float32"] = psnr_to_float32(autoencoder, trained.folded(config), config, request)
    return result


def inference_call(
    autoencoder: AutoEncoder, config: Config, request: Request
) -> tuple[Callable[..., Any], tuple[tf.Tensor, ...]]:
    """What a case of inference calls, and with what."""
    batch, side = request.batch, config.data.resolution
    if request.case == ENCODE:
        return autoencoder.encode, (random_images(batch, side, 1),)
    if request.case == DECODE:
        place = side // autoencoder.stride
        content = tf.random.stateless_normal([batch, place, place, config.model.content_dim], [2, 0])
        return autoencoder.decode, (content, tf.random.stateless_normal([batch, config.model.style_dim], [3, 0]))
    strategy = request.case.partition("/")[2]

    def blend(images: tf.Tensor, looks: tf.Tensor, masks: tf.Tensor) -> tf.Tensor:
        return autoencoder.masked_blend(images, looks, masks, strategy=strategy)

    return blend, edits(batch, request.regions, side)


def psnr_to_float32(autoencoder: AutoEncoder, exact: AutoEncoder, config: Config, request: Request) -> float:
    """In dB, the mean over the pictures as they are shown."""
    shown = []
    for each in (autoencoder, exact):
        function, inputs = inference_call(each, config, request)
        shown.append(answers.shown(np.asarray(function(*inputs), np.float32)))
    return float(np.mean(metrics.psnr(*shown)))


def asked_flops(function: Callable[..., Any], *inputs: tf.Tensor) -> int:
    """FLOPs of the networks as they are defined, every convolution by its plain sum, whichever way it is computed."""
    with winograd.plain():
        return flops.total(tf.function(function, autograph=False).get_concrete_function(*inputs))


def edits(batch: int, regions: int, side: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What a masked blend takes: pictures, a look for every region, and their masks, upright stripes."""
    looks = random_images(batch * regions, side, 4)
    return (
        random_images(batch, side, 1),
        tf.reshape(looks, [batch, regions, side, side, 3]),
        stripes(batch, regions, side),
    )


def network_sizes(
    config: Config, ours: AutoEncoder, critic: Discriminator, patch_critic: PatchDiscriminator
) -> dict[str, Any]:
    """What `reference_torch.Networks` is built from."""
    return {
        "downsamples": config.model.downsamples,
        "content_dim": config.model.content_dim,
        "style_dim": config.model.style_dim,
        "noise": config.model.noise,
        "encoder": ours.encoder.widths,
        "generator": ours.generator.widths,
        "discriminator": critic.widths,
        "side": config.data.resolution // 2 ** len(critic.blocks),
        "patch_discriminator": patch_critic.widths,
        "dense": [layer.kernel.shape[1] for layer in patch_critic.dense[:-1]],
        "patch_size": config.model.patch_size,
    }


def served(config: Config, request: Request) -> dict[str, Any]:
    """The exported `masked_blend` through a Session, which is how TensorFlow Serving runs it.

    Adds `times_in_process`: the median of how many times as long it takes as the same edit by a traced function of
    this process, the two taking turns.
    """
    autoencoder, batch = AutoEncoder.from_config(config).folded(config, config.mixed_precision), request.batch
    images, looks, masks = edits(batch, 1, config.data.resolution)
    concrete = tf.function(autoencoder.masked_blend, autograph=False).get_concrete_function(images, looks, masks)
    arrays = {"images": (images + 1) / 2, "style_images": (looks[:, 0] + 1) / 2, "masks": masks[:, 0]}
    arrays["strength"] = tf.ones([batch])
    closing = contextlib.closing(tf.compat.v1.Session(graph=tf.Graph()))
    with tempfile.TemporaryDirectory() as directory, closing as session:
        savedmodel.write(signatures.build(autoencoder, config), Path(directory))
        with session.graph.as_default():
            signature = tf.compat.v1.saved_model.load(session, ["serve"], directory).signature_def["masked_blend"]
        output = signature.outputs["images"].name
        feeds = {signature.inputs[name].name: value.numpy() for name, value in arrays.items()}
        difference = np.abs(session.run(output, feeds) - np.clip(concrete(images, looks, masks) / 2 + 0.5, 0, 1)).max()
        if difference > 1e-3:
            raise ValueError(f"the Session's pictures differ from those of this process by {difference:.1e}")
        here: list[float] = []

        def call() -> None:
            begun = time.perf_counter()
            concrete(images, looks, masks)
            tf.test.experimental.sync_devices()
            here.append(time.perf_counter() - begun)
            session.run(output, feeds)

        both = measuring.measure(call, 2 * request.seconds, warm_up=2)
    here = here[-len(both) :]
    there = [total - own for total, own in zip(both, here)]
    ratio = statistics.median(theirs / ours for theirs, ours in zip(there, here))
    result = {**measuring.summary(there), "times_in_process": ratio, "images": batch, "peak_bytes": peak_bytes()}
    return {**result, "flops": asked_flops(autoencoder.masked_blend, images, looks, masks)}


def stripes(batch: int, regions: int, side: int) -> tf.Tensor:
    """`measuring.stripes` as a tensor."""
    return tf.constant(measuring.stripes(batch, regions, side))


class Trainer:
    """A model, its strategy and one batch, and the phases of its training: steps differ by the lazy terms due."""

    def __init__(self, config: Config, strategy: Optional[tf.distribute.Strategy] = None):
        self.config = config
        self.strategy = strategy or training.prepare(config)
        with self.strategy.scope():
            self.model = TCP(config)
            self.model.compile()
        self.model.warming_up = False
        share = config.data.batch_size // self.strategy.num_replicas_in_sync
        images = random_images(config.data.batch_size, config.data.resolution, 1)

        def part(context: Any) -> dict[str, tf.Tensor]:
            first = context.replica_id_in_sync_group * share
            return {"image": images[first : first + share], "position": tf.range(first, first + share)}

        self.batch = self.strategy.experimental_distribute_values_from_function(part)
        self.phases = phases(self.model.objective)

    def function(self, step: Callable[[Any], Any]) -> Any:
        """A concrete function that runs `step` on every replica."""
        replicated = tf.function(lambda batch: self.strategy.run(step, (batch,)), autograph=False)
        return replicated.get_concrete_function(self.batch)

    def time(self, concrete: Any, phase: tuple[str, ...], seconds: float) -> dict[str, Any]:
        """Wall times of a function at a step of this phase."""

        def call() -> None:
            self.model.step.assign(self.phases[phase][0])
            concrete(self.batch)

        return timed(call, seconds)

    @contextlib.contextmanager
    def only_due(self, phase: tuple[str, ...]) -> Iterator[None]:
        """Whatever is traced in here has no other lazy terms than those of the phase."""
        weights = self.model.objective.weights
        lazy = [name for name in self.model.objective.intervals if name not in phase and name in weights]
        removed = {name: weights.pop(name) for name in lazy}
        try:
            yield
        finally:
            weights.update(removed)

    def flops(self, step: Callable[[Any], Any], phase: tuple[str, ...]) -> int:
        """FLOPs of a step in this phase, on all replicas together, every convolution by its plain sum."""
        with self.only_due(phase), winograd.plain():
            return flops.total(self.function(step))


def phases(objective: Any) -> dict[tuple[str, ...], tuple[int, float]]:
    """Which lazy terms are due together: names -> (a step where just these are, the share of such steps)."""
    cycle = math.lcm(*objective.intervals.values())
    first = math.ceil(max(objective.starts.values(), default=0) / cycle) * cycle
    due = [
        tuple(name for name in objective.intervals if objective.due(name, step)) for step in range(first, first + cycle)
    ]
    return {names: (first + due.index(names), times / cycle) for names, times in Counter(due).items()}


def training_step(config: Config, seconds: float) -> dict[str, Any]:
    """The whole step of both optimizers, amortised: the phases' medians by their share of the steps.

    Adds `phases`: name -> {share, flops, median_s, spread, repeats}. The spread is that of the longest phase's times.
    """
    trainer = Trainer(config)
    concrete = trainer.function(trainer.model.train_step)
    times = {phase: trainer.time(concrete, phase, seconds / len(trainer.phases)) for phase in trainer.phases}
    peak = peak_bytes()  # without what counting takes
    parts = {}
    for phase, (_, share) in trainer.phases.items():
        counted = trainer.flops(trainer.model.gradients, phase)
        parts[" ".join(phase) or "plain"] = {"share": share, "flops": counted, **times[phase]}
    return {
        **measuring.amortised(parts),
        "flops": measuring.weighted([(part["share"], part["flops"]) for part in parts.values()]),
        "images": config.data.batch_size,
        "peak_bytes": peak,
    }


def training_part(config: Config, case: str, seconds: float) -> dict[str, Any]:
    """One side's gradients and its optimizer's step alone, without lazy terms: what it would cost as a step of its own.

    Both parts together cost more than a training step, which makes the pictures only once.
    """
    trainer = Trainer(config)
    model = trainer.model
    side = "g" if case == "generator_part" else "d"
    optimizer = model.optimizer if side == "g" else model.discriminator_optimizer
    variables = model.generator_side if side == "g" else model.discriminator_side

    @tf.autograph.experimental.do_not_convert
    def step(batch: Any) -> None:
        optimizer.apply_gradients(zip(model.gradients(batch)[0][side], variables))

    plain = min(trainer.phases, key=len)
    with trainer.only_due(()):
        concrete = trainer.function(step)
    measured = trainer.time(concrete, plain, seconds)
    result = {**measured, "images": config.data.batch_size, "peak_bytes": peak_bytes()}
    return {**result, "flops": trainer.flops(step, ())}


def pipeline(config: Config, batch: int, seconds: float) -> dict[str, Any]:
    """The training batches of a folder of JPEG photographs, alone: images/s, and images per second of CPU time.

    The photographs have 1.5 times the short side of the training pictures, 4:3, quality 90, and are read from the
    operating system's cache.
    """
    side = config.data.resolution
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder) / "photographs", round(PHOTOGRAPH_MARGIN * side))
        settings = [
            f"data.source=folder:{Path(folder) / 'photographs'}",
            f"data.data_dir={Path(folder) / 'index'}",
            f"data.batch_size={batch + batch % 2}",
            f"data.resolution={side}",
        ]
        whole = configuration.load(settings_file(config, Path(folder)), settings)
        source = sources.open_source(whole.data, "train")
        batches = iter(data.training_dataset(whole, source))
        for _ in range(4):
            next(batches)
        times: list[float] = []
        begun, spent = time.perf_counter(), time.process_time()
        while len(times) < 2 * measuring.MIN_REPEATS or time.perf_counter() < begun + seconds:
            start = time.perf_counter()
            next(batches)
            times.append(time.perf_counter() - start)
        elapsed, cpu = time.perf_counter() - begun, time.process_time() - spent
    count = len(times) * whole.data.batch_size
    result = measuring.summary(times)
    return {
        **result,
        "median_s": elapsed / len(times),  # read ahead, so that a single batch's time says nothing
        "images": whole.data.batch_size,
        "images_per_cpu_second": count / cpu,
        "peak_bytes": measuring.peak_memory(),
    }


def settings_file(config: Config, folder: Path) -> Path:
    """The configuration as a file of its own, without what the pipeline replaces."""
    file = folder / "config.yaml"
    file.write_text(configuration.dump(config), encoding="utf-8")
    return file


def write_photographs(folder: Path, short_side: int, count: Optional[int] = None) -> None:
    """JPEG pictures with the detail of photographs: smooth fields at many scales, 4:3."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    width, height = short_side * 4 // 3, short_side
    for number in range(PHOTOGRAPHS if count is None else count):
        picture = np.full([height, width, 3], 128.0)
        for cells, strength in ((3, 60.0), (12, 30.0), (48, 15.0), (192, 6.0)):
            coarse = rng.integers(0, 256, [cells, cells * 4 // 3, 3], np.uint8)
            field = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            picture += (np.asarray(field, np.float64) - 128.0) * (strength / 64.0)
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=QUALITY)
