"""One training from configuration to finished run directory: what `train.py` and the studies call."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import keras
import numpy as np
import tensorflow as tf

from tcp_tf import callbacks, checkpoints, data, evaluate, guards, optimizers, run_dir, sources, workers
from tcp_tf import config as configuration
from tcp_tf.config import Config
from tcp_tf.model import TCP
from tcp_tf.workers import Worker, WorkerLost

logger = logging.getLogger(__name__)

GRID_PICTURES = 12
ANOTHER_SEED = 0x9E3779B1  # odd, so that all multiples differ; far from the small seeds that people choose
# What decides which variables there are, and their shapes and meaning: cannot change within a run.
FIXED_KEYS = re.compile(r"model\..*|data\.resolution|optimizer\..*\.name")


def devices(config: Config) -> list[str]:
    """The devices that `replicas` names: `auto` is every visible GPU, else the CPU.

    Raises:
        ValueError: a device that does not exist, or more than there are.
    """
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name for device in found]
    if config.replicas == "auto":
        return names if "GPU" in names[0] else names[:1]
    if isinstance(config.replicas, int):
        if config.replicas > len(names):
            raise ValueError(f"replicas: {config.replicas} asked for, {len(names)} found: {', '.join(names)}")
        return names[: config.replicas]
    known = [device.name for device in tf.config.list_logical_devices()]
    short = {name.replace("/device:", ""): name for name in known}
    wanted = [short.get(name.replace("/device:", ""), name) for name in config.replicas]
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ValueError(f"replicas: no device {missing[0]!r}; found: {', '.join(known)}")
    return wanted


def share_cores(parts: int) -> None:
    """Lets TensorFlow run so many operations at a time, and divide one among the cores that are left beside the others.

    Its defaults are as many operations as cores, each divided among all of them. They stay where there is a GPU, and
    where TensorFlow has begun.
    """
    if tf.config.list_physical_devices("GPU"):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        tf.config.threading.set_inter_op_parallelism_threads(parts)
        tf.config.threading.set_intra_op_parallelism_threads(max(1, cores - parts))
    except RuntimeError:
        logger.warning("train.concurrent: TensorFlow has threads already; for its speed train in a new process")


def prepare(config: Config) -> tf.distribute.Strategy:
    """Sets threads, seeds, precision and determinism of the process and returns the strategy.

    With `multi_worker` it waits for the other workers, and must come before anything else that TensorFlow does.
    """
    parts = config.parts_at_once(config.known_replicas)
    if parts > 1:
        share_cores(parts)
    together = tf.distribute.MultiWorkerMirroredStrategy() if config.multi_worker else None
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    keras.mixed_precision.set_global_policy(config.mixed_precision)
    return together or tf.distribute.MirroredStrategy(devices(config))


def check_resumption(directory: Path, config: Config, log: Callable[[str], None] = print) -> None:
    """Compares the configuration with the one that a run directory was begun with, and says in one line what is new.

    Raises:
        ValueError: what a checkpoint there holds has other shapes than this configuration asks for, or steps of
            another size: kimg, data order and the schedule of the lazy terms all count steps.
    """
    there = checkpoints.prefixes(directory / run_dir.CHECKPOINTS)
    if not there:
        return
    before, now = (dict(configuration.flat(each)) for each in (run_dir.read_config(directory), config))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    changes = {key: f"{key} {before.get(key)} -> {now.get(key)}" for key in keys}
    fixed = [change for key, change in changes.items() if FIXED_KEYS.fullmatch(key)]
    if fixed:
        raise ValueError(
            f"{directory}: has checkpoints of other networks or optimizers ({', '.join(fixed)}); "
            f"choose another run directory or the old values"
        )
    steps = checkpoints.number_of(there[-1])
    if steps > 0 and "data.batch_size" in changes:
        raise ValueError(
            f"{directory}: has {steps} steps of another size ({changes['data.batch_size']}), by which its kimg are "
            f"counted; choose another run directory or the old value"
        )
    if changes:
        log(f"{directory}: goes on with {', '.join(changes.values())}")


def facts(strategy: tf.distribute.Strategy, source: Any) -> dict[str, Any]:
    """What a checkpoint tells the next process about this one, beside the configuration."""
    parts = source.sources if isinstance(source, sources.JoinedSource) else [source]
    digest = hashlib.sha256()
    for part in parts:
        # Pictures of a folder are known by their paths inside it, which also decide on their order.
        for path in getattr(part, "paths", ()):
            digest.update(os.fsencode(path) + b"\0")
        digest.update(f"{len(part)}\n".encode())
    return {
        "replicas": strategy.num_replicas_in_sync,
        "pictures": len(source),
        "fingerprint": digest.hexdigest()[:16],
        "rollbacks": 0,
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for everything that makes this run another one than if it had never been stopped.

    Args:
        before: `facts` of the checkpoint; what it does not tell is not compared.
        now: `facts` of this process.
    """
    lines = []
    replicas = before.get("replicas", now["replicas"])
    if replicas != now["replicas"]:
        lines.append(
            f"replicas {replicas} -> {now['replicas']}: schedule, order of the pictures and random draws stay the "
            f"same; sums are rounded in another order, so the weights cannot be equal bit for bit"
        )
    if before.get("fingerprint", now["fingerprint"]) != now["fingerprint"]:
        lines.append(
            f"the training pictures have changed, from {before.get('pictures')} to {now['pictures']} or in their "
            f"names: from here on the order is that of the new ones"
        )
    return lines


def train(config: Config, directory: Path, log: Callable[[str], None] = print) -> TCP:
    """Trains from the newest whole checkpoint of `directory`, or from scratch, to the configured kimg.

    Raises:
        callbacks.Interrupted: a signal arrived; everything up to the last finished step is saved.
        callbacks.NonFiniteLoss: a number is not finite, and `train.rollbacks` are used up.
        callbacks.CannotWrite: the disk is full or refuses for another reason; the last good checkpoint is intact.
        WorkerLost: another worker is gone.
        ValueError: the data, the devices, the workers or the run directory cannot be used.
        OSError: the run directory cannot be written.
    """
    worker = workers.this_one() if config.multi_worker else workers.ALONE
    with run_dir.claimed(directory) if worker.is_chief else contextlib.nullcontext():
        check_resumption(directory, config, log)
        strategy = prepare(config)
        source = sources.open_source(config.data, "train")
        held_out = sources.open_source(config.data, "validation")
        pictures = data.evaluation_images(held_out, GRID_PICTURES, config)
        with strategy.scope():
            model = TCP(config)
            model.compile()
        keep = config.train.keep_checkpoints
        manager = run_dir.manager(directory, model.checkpoint(), keep, log, read_only=not worker.is_chief)
        manager.facts = facts(strategy, source)
        if manager.latest_checkpoint:
            known = restore(manager, manager.latest_checkpoint)
            for line in differences(known, manager.facts):
                log(f"{directory}: {line}")
            manager.facts["rollbacks"] = int(known.get("rollbacks", 0))
            log(f"resumed from {manager.latest_checkpoint}")
        elif config.train.start_from:
            take_averages(model, config.train.start_from)
            log(f"begins with the encoder and generator of {config.train.start_from}")
        if worker.is_chief:
            with callbacks.writing(directory / run_dir.CONFIG):
                run_dir.write_config(directory, config)
        total = max(1, round(config.train.kimg * 1000 / config.data.batch_size))
        if int(model.step.numpy()) >= total:
            log(f"{directory}: already trained to {total * config.data.batch_size / 1000:g} kimg")
            return model
        while True:
            try:
                fit(model, source, directory, manager, pictures, int(model.step.numpy()), total, worker)
                return model
            except callbacks.CannotWrite as error:
                raise callbacks.CannotWrite(f"{error}; last good checkpoint: {manager.latest_checkpoint}") from error
            except callbacks.NonFiniteLoss as error:
                used, allowed = manager.facts["rollbacks"], config.train.rollbacks
                told_to_stop = isinstance(error.__context__, callbacks.Interrupted)
                good = checkpoints.newest(manager.directory, log) if used < allowed and not told_to_stop else None
                if good is None:
                    raise
                restore(manager, good)
                manager.facts["rollbacks"] = used + 1
                log(f"{error}; goes back to it with another order of pictures, {used + 1} of {allowed} times")


def restore(manager: checkpoints.Manager, prefix: str) -> dict[str, Any]:
    """Reads a checkpoint into what the manager writes, and returns what it tells of its run.

    Raises:
        ValueError: it holds other variables.
    """
    try:
        manager.checkpoint.restore(prefix).assert_consumed()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{prefix}: does not fit this configuration: {reason}") from error
    return checkpoints.facts(prefix)


def take_averages(model: TCP, directory: str) -> None:
    """Gives encoder and generator, and their averages, the averaged weights of another run; nothing else of it.

    Raises:
        ValueError: there is no such run, or its networks have other sizes.
    """
    autoencoder, config = run_dir.load_autoencoder(directory)
    takers = (model.encoder, model.encoder_ema, model.generator, model.generator_ema)
    givers = (autoencoder.encoder, autoencoder.encoder, autoencoder.generator, autoencoder.generator)
    pairs: list[tuple[Any, Any]] = list(zip(takers, givers))
    if any([w.shape for w in taker.weights] != [w.shape for w in giver.weights] for taker, giver in pairs):
        theirs, ours = (dict(configuration.flat(each)) for each in (config, model.config))
        others = [f"{key} {theirs[key]}" for key in ours if key.startswith("model.") and theirs[key] != ours[key]]
        raise ValueError(f"train.start_from: {directory} has networks of other sizes: {', '.join(others)}")
    for taker, giver in pairs:
        for target, source in zip(taker.weights, giver.weights):
            target.assign(source)


def fit(
    model: TCP,
    source: Any,
    directory: Path,
    manager: checkpoints.Manager,
    pictures: Any,
    start: int,
    total: int,
    worker: Worker = workers.ALONE,
) -> None:
    """Steps `start` to `total`, with everything that the chief writes on the way.

    Raises:
        Interrupted, NonFiniteLoss, CannotWrite, WorkerLost: see `train`.
    """
    config, batch = model.config, model.config.data.batch_size
    writers: list[callbacks.Clock] = []
    if worker.is_chief:
        saver = callbacks.Checkpoints(manager, config.train.checkpoint_kimg, batch, start)
        grids = callbacks.Grids(directory, config.train.grid_kimg, batch, start, pictures)
        writers = [callbacks.Metrics(directory, config.train.tick_kimg, batch, start, total), saver, grids]
    stop = callbacks.StopOnSignal()
    ordered = reordered(config, manager.facts.get("rollbacks", 0))
    if config.multi_worker:
        dataset = model.distribute_strategy.distribute_datasets_from_function(
            lambda context: worker_dataset(ordered, source, start, context)
        )
    else:
        dataset = on_this_host(model.distribute_strategy, data.training_dataset(ordered, source, start))
    try:
        model.fit(
            dataset,
            epochs=1,
            steps_per_epoch=total - start,
            verbose=0,
            shuffle=False,
            callbacks=[*writers, stop],
        )
        if worker.is_chief:
            saver.save()
            grids.draw()
    except callbacks.Interrupted:
        if worker.is_chief:
            saver.save()
        raise
    except tf.errors.OpError as error:
        names, reason = guards.not_finite(error), workers.lost(error)
        if names:
            step = int(model.step.numpy()) + 1
            raise callbacks.NonFiniteLoss(
                f"{names} not finite at step {step}; last good checkpoint: {manager.latest_checkpoint}"
            ) from error
        if reason:
            raise WorkerLost(
                f"another worker is gone ({reason}); start all of them again with the same command to go on from "
                f"{checkpoints.newest(manager.directory) or 'the beginning'}"
            ) from error
        raise
    finally:
        for writer in writers:
            writer.close()
        stop.restore()


def worker_dataset(config: Config, source: Any, start: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
    """This worker's part of every batch, in one batch for each of its replicas."""
    count = context.num_input_pipelines
    dataset = data.training_dataset(config, source, start, part=context.input_pipeline_id, parts=count)
    if context.num_replicas_in_sync == count:
        return dataset
    each = context.get_per_replica_batch_size(config.data.batch_size)
    return dataset.unbatch().batch(each, drop_remainder=True)


def on_this_host(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset) -> Any:
    """The dataset for `fit`; for the CPU alone without the buffer that carries batches to devices.

    That buffer has a tuner in a thread of its own, which looks up less and less often, in the end once a minute, and is
    waited for when a training ends.
    """
    if strategy.num_replicas_in_sync > 1 or tf.config.list_logical_devices("GPU"):
        return dataset
    options = tf.distribute.InputOptions(
        experimental_fetch_to_device=False,
        experimental_replication_mode=tf.distribute.InputReplicationMode.PER_REPLICA,
    )
    return strategy.distribute_datasets_from_function(lambda _: dataset, options)


def reordered(config: Config, times: int) -> Config:
    """The same with another order of pictures, crops and flips for every number of times; 0 is the usual order."""
    return config.model_copy(update={"seed": (config.seed + times * ANOTHER_SEED) % 2**31})


def report(directory: Path) -> None:
    """Prints what the averaged weights are worth on held-out pictures, beside trivial answers where those exist."""
    autoencoder, config = run_dir.load_autoencoder(directory)
    print(evaluate.table(evaluate.swap_report(autoencoder, config, config.train.evaluate_examples)))


def summary(config: Config) -> str:
    """Parameter counts and a memory estimate for a training step, without any data.

    The estimate counts weights, gradients, what the optimizers keep and averages exactly; activations by the pictures'
    share of the widest maps, which is rough (within a factor of two where it was compared).
    """
    prepare(config)
    model = TCP(config)
    model.compile()
    lines, total = ["parameters"], 0
    for name in ("encoder", "generator", "discriminator", "patch_discriminator"):
        count = sum(int(np.prod(v.shape)) for v in getattr(model, name).trainable_variables)
        total += count
        lines.append(f"  {name:20} {count:>12,}")
    averaged = sum(int(np.prod(v.shape)) for v in model.encoder_ema.weights + model.generator_ema.weights)
    gradients = model.concurrent + (config.train.accumulate > 1)  # of the parts at work, and the sums
    kept = [each for one in (model.optimizer, model.discriminator_optimizer) for each in optimizers.variables(one)]
    states = 4 * ((1 + gradients) * total + averaged + sum(int(np.prod(v.shape)) for v in kept))
    activations = activation_bytes(config, model)
    lines.append(f"memory of one replica, all {config.data.batch_size} pictures on it (estimate)")
    lines.append(f"  {'weights, optimizers':20} {states / 2**20:>9,.0f} MiB")
    lines.append(f"  {'activations':20} {activations / 2**20:>9,.0f} MiB")
    return "\n".join(lines)


def activation_bytes(config: Config, model: TCP) -> int:
    """Rough bytes of the feature maps kept for one backward pass of all networks.

    Each residual block counts as 4 maps of its larger side's size (its input, a filtered copy, the signs of both
    convolutions' results, and what comes and goes meanwhile), for the encoder on N pictures, the generator on 1.5 N and
    one of the discriminators at a time, on one lot (`critics.lots`) of 1.5 N pictures, 2.5 N where the real ones are
    among them, or 3 N K crops; N are those of one part of `train.accumulate`, and each part of `train.concurrent` has a
    lot of its own. With `train.recompute` a block keeps its input, and the largest one's 7 maps come and go.
    """
    batch = config.data.batch_size / config.train.accumulate
    side, patch = config.data.resolution, config.model.patch_size

    def maps(count: float, pixels: int, widths: Sequence[int]) -> list[float]:
        return [count * width * (pixels / 2**i) ** 2 for i, width in enumerate(widths)]

    encoder = maps(batch, side, model.encoder.widths[: config.model.downsamples + 1])
    generator = maps(1.5 * batch, side, model.generator.widths[::-1])
    critics, part = model.critics, batch / model.concurrent
    judged = 2.5 if critics.together(int(part)) else 1.5
    pictures = maps(judged * batch / critics.picture_lots(int(judged * part)), side, model.discriminator.widths)
    crops_at_once = 3 * batch / critics.crop_lots(int(part)) * config.patches.crops
    crops = maps(crops_at_once, patch, model.patch_discriminator.widths)
    together = sum(encoder) + sum(generator) + max(sum(pictures), sum(crops))
    largest = max(*encoder, *generator, *pictures, *crops)
    numbers = together + 7 * largest if config.train.recompute else 4 * together
    return int(numbers * (4 if config.mixed_precision == "float32" else 2))
