"""What one stack makes of a model, run by `test_addons.py` with the interpreter of the other: arrays in OUT.npz.

python stack_runner.py run RUN_DIR OUT.npz     codes, decoded pictures and masked blends of fixed inputs
python stack_runner.py export DIR OUT.npz      the same, by the functions of a SavedModel and nothing of this project
python stack_runner.py step RUN_DIR OUT.npz    one training step from the newest checkpoint: every variable then
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

from pathlib import Path

import numpy as np
import tensorflow as tf

Arrays = dict[str, np.ndarray]
SIDE = 64


def inputs() -> Arrays:
    """Two pictures, looks and masks; pictures in [0, 1]."""
    rng = np.random.default_rng(5)
    pictures = rng.uniform(0.0, 1.0, (2, 2, SIDE, SIDE, 3)).astype(np.float32)
    masks = np.zeros((2, SIDE, SIDE, 1), np.float32)
    masks[:, 8:40, 16:56] = 1.0
    return {"images": pictures[0], "style_images": pictures[1], "masks": masks}


def of_run(directory: str) -> Arrays:
    """The answers of a run's averaged weights; pictures in [-1, 1]."""
    from tcp_tf.run_dir import load_autoencoder

    given = inputs()
    autoencoder, _ = load_autoencoder(directory)
    images, looks = given["images"] * 2 - 1, given["style_images"] * 2 - 1
    codes = autoencoder.encode(images)
    decoded = autoencoder.decode(codes.content, codes.style[::-1])
    blend = autoencoder.masked_blend(images, looks, given["masks"])
    return {"content": codes.content, "style": codes.style, "decoded": decoded, "blend": blend}


def of_export(directory: str) -> Arrays:
    """The answers of a SavedModel, pictures brought to [-1, 1]."""
    given = {name: tf.constant(value) for name, value in inputs().items()}
    functions = tf.saved_model.load(directory).signatures
    codes = functions["encode"](images=given["images"])
    decoded = functions["decode"](content=codes["content"], style=codes["style"][::-1])["images"]
    blend = functions["masked_blend"](**given, strength=tf.ones([2]))["images"]
    return {**codes, "decoded": decoded * 2 - 1, "blend": blend * 2 - 1}


def after_a_step(directory: str) -> Arrays:
    """Variables of the networks and the optimizers after one step from the newest checkpoint, by their places."""
    from tcp_tf import optimizers, run_dir
    from tcp_tf.model import TCP

    config = run_dir.read_config(directory)
    model = TCP(config)
    model.compile()
    checkpoint = model.checkpoint()
    checkpoint.restore(run_dir.latest_checkpoint(directory)).assert_consumed()
    size = config.data.batch_size
    images = np.random.default_rng(6).uniform(-1.0, 1.0, (size, SIDE, SIDE, 3)).astype(np.float32)
    model.train_step({"image": tf.constant(images), "position": tf.range(size)})
    parts = {
        "networks": model.generator_side + model.discriminator_side,
        "averages": [*model.encoder_ema.weights, *model.generator_ema.weights],
        "optimizer": checkpoint.model.optimizer._variables,
        "discriminator_optimizer": checkpoint.model.discriminator_optimizer._variables,
        "step": [model.step],
    }
    return {
        f"{part}/{i:04d}": variable.numpy()
        for part, variables in parts.items()
        for i, variable in enumerate(variables)
        if not isinstance(variable, optimizers.Zeros)
    }


if __name__ == "__main__":
    kind, directory, output = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    answers = {"run": of_run, "export": of_export, "step": after_a_step}[kind](directory)
    np.savez(output, **{name: np.asarray(value) for name, value in answers.items()})
