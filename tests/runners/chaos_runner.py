"""One process that trains, is killed again and again, and goes on from what its files hold.

    python chaos_runner.py FOLDER KILLS SEED

First a training that nothing disturbs, in FOLDER/calm. Then the same in FOLDER/disturbed, where every kill leaves the
files as they are at a random moment (see `kills.Kill`), every third of them damages the newest checkpoint on top, and
every variable gets another value before the next life begins, so that nothing but the files can carry the training
on. Starting TensorFlow and tracing the step, most of the time of a real process, happen once.

Prints as JSON how often it died at which moment, how many damaged checkpoints were passed over, and which of the
variables differ in the end.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from kills import Kill, cut, flip
from small import Noise, small_batch, small_config

from tcp_tf import checkpoints, run_dir, training
from tcp_tf.model import TCP

STEPS, EVERY = 60, 3  # of the training, and from one checkpoint to the next


def variables(model: TCP) -> list[Any]:
    """All that training changes; the learning rates come from the configuration."""
    found = [*model.weights, model.step]
    for optimizer in (model.optimizer, model.discriminator_optimizer):
        found += [variable for variable in optimizer.variables if variable is not optimizer.learning_rate]
    return found


def give(model: TCP, values: list[np.ndarray]) -> None:
    for variable, value in zip(variables(model), values):
        variable.assign(value)


def log_of(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def main(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    settings = [f"train.checkpoint_kimg={EVERY * 4 / 1000}", "train.tick_kimg=0.004", "train.grid_kimg=1000"]
    config = small_config("deterministic=true", *settings)
    with training.prepare(config).scope():
        model = TCP(config)
        model.compile()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # which takes long
    source, pictures = Noise(30, config.data.resolution), small_batch(config)["image"].numpy()[:2]
    checkpoint = model.checkpoint()
    begun = [variable.numpy() for variable in variables(model)]
    passed_over: list[str] = []

    def life(directory: Path) -> None:
        """From the newest checkpoint of a directory, or from the beginning, to the end."""
        with run_dir.claimed(directory):
            manager = run_dir.manager(directory, checkpoint, 3, passed_over.append)
            if manager.latest_checkpoint:
                training.restore(manager, manager.latest_checkpoint)
            else:
                give(model, begun)
            training.fit(model, source, directory, manager, pictures, int(model.step.numpy()), STEPS)

    life(folder / "calm")
    calm = [variable.numpy() for variable in variables(model)]
    disturbed, chance = folder / "disturbed", random.Random(seed)
    moments: Counter[str] = Counter()
    while sum(moments.values()) < kills:
        give(model, [np.full(value.shape, 7, value.dtype) for value in calm])
        # Every fifth time while TensorFlow itself writes, which is one call among the many of a saving.
        kill = Kill(chance.randint(0, 24)) if sum(moments.values()) % 5 else Kill(chance.randint(0, 2), "write")
        with kill:
            life(disturbed)
        if not kill.moment:
            raise SystemExit(f"the training was over after {sum(moments.values())} kills")
        moments[kill.moment] += 1
        there = checkpoints.prefixes(disturbed / run_dir.CHECKPOINTS)
        whole = [prefix for prefix in there if not checkpoints.damage(prefix)]
        if sum(moments.values()) % 3 == 0 and len(whole) > 1:
            ending = chance.choice([".index", ".data-00000-of-00001", ".json"])
            chance.choice([cut, flip])(Path(whole[-1] + ending))
    give(model, [np.full(value.shape, 7, value.dtype) for value in calm])
    life(disturbed)
    final = [variable.numpy() for variable in variables(model)]
    paths = [getattr(variable, "path", variable.name) for variable in variables(model)]
    return {
        "moments": moments,
        "passed_over": len(passed_over),
        "variables": len(paths),
        "differing": [path for path, a, b in zip(paths, calm, final) if not np.array_equal(a, b)],
        "same_log": log_of(folder / "calm") == log_of(disturbed),
        "steps": [line["step"] for line in log_of(disturbed)],
        "files": sorted(path.name for path in (disturbed / run_dir.CHECKPOINTS).iterdir()),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
