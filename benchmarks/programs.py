"""The cases as XLA programs, for a machine with an accelerator and without TensorFlow.

    python -m benchmarks.programs DIRECTORY --batch 1 8 --training-batch 4 16        here, TensorFlow on a CPU is enough
    python -m benchmarks.on_jax DIRECTORY --results benchmarks/results               there, with JAX's client

Each is what TensorFlow hands to its own XLA when it compiles a function for a GPU, before any choice that depends on
the machine. Training is a whole step of `TCP.train_step`: gradients, optimizers, averages. Only the guard against
numbers that are not finite is left out, which XLA cannot run; the numbers it looks at are computed.

Beside the programs lies `index.json`: what goes in, FLOPs, and what a first picture, or a first step, gives here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from benchmarks import children, measuring
from benchmarks.children import BLENDS, DECODE, ENCODE, INFERENCE, SIZES, STEP, CaseError, Request
from benchmarks.speed import DEFAULT

INDEX = "index.json"
CHECKED_STEP = 4  # pictures of a step that is run here, too; more need more memory than many a machine has
LISTED = 64  # values of an input that are written out; others are drawn
CASES = (*INFERENCE, STEP)
NORMAL, PICTURES, STRIPES, ZEROS = "normal", "pictures", "stripes", "zeros"
# What a case's own inputs are drawn from; None is written out.
DRAWS: dict[str, list[Optional[str]]] = {ENCODE: [PICTURES], DECODE: [NORMAL, NORMAL], STEP: [PICTURES, None]}


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.programs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="to write to; programs that it has stay")
    parser.add_argument("--config", default=DEFAULT, help="experiment whose networks are meant (%(default)s)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8], help="pictures per call (1 4 8)")
    parser.add_argument("--training-batch", type=int, nargs="+", default=[4, 16], help="pictures per step (4 16)")
    parser.add_argument("--regions", type=int, nargs="+", default=[1], help="of masked blends (1)")
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit code: 0, or 2 where a program cannot be made."""
    options = parse(arguments)
    options.directory.mkdir(parents=True, exist_ok=True)
    index = options.directory / INDEX
    entries = json.loads(index.read_text(encoding="utf-8")) if index.exists() else []
    for case in options.cases:
        regions = options.regions if case in BLENDS else [1]
        for batch in options.training_batch if case == STEP else options.batch:
            for count in regions:
                request = Request(
                    case,
                    options.config,
                    options.overrides,
                    batch=batch,
                    regions=count,
                    side="program",
                    weights=str(options.directory),
                )
                try:
                    entries.append(children.run(request, tuned=True))
                except CaseError as error:
                    print(f"benchmarks.programs: {case}, batch {batch}: {error}", file=sys.stderr)
                    return 2
                index.write_text(json.dumps(entries) + "\n", encoding="utf-8")
                print(f"{entries[-1]['file']}: {len(entries[-1]['inputs'])} inputs", flush=True)
    return 0


def drawn(kind: str, shape: Sequence[int], place: int) -> np.ndarray:
    """The values of an input that is not written out, by its place among the inputs: the same on every machine."""
    random = np.random.default_rng([2108, place])
    if kind == NORMAL:
        return random.standard_normal(shape, np.float32)
    if kind == PICTURES:
        return random.random(shape, np.float32) * 2 - 1
    return measuring.stripes(*shape[:3]) if kind == STRIPES else np.zeros(shape, np.float32)


def write(request: Request) -> dict[str, Any]:
    """Writes one program to the directory `request.weights`; the child's side.

    Returns:
        {case, config, overrides, batch, regions, dtype, file, tensorflow, flops, images, inputs: [{shape, dtype, and
        values or draw}], first: what the first picture gives, or the first step}; a step has `phases` and the place of
        its number among the inputs.
    """
    import keras
    import tensorflow as tf

    from benchmarks import cases
    from tcp_tf import config as configuration
    from tcp_tf import critics
    from tcp_tf.autoencoder import AutoEncoder

    # A GPU takes all pictures at once.
    sizes = [f"data.batch_size={request.batch}", "replicas=1", "train.concurrent=1"] if request.case == STEP else []
    config = configuration.load(request.config, [*request.overrides, *sizes])
    keras.utils.set_random_seed(config.seed)
    keras.mixed_precision.set_global_policy(config.mixed_precision)
    entry: dict[str, Any] = {
        "case": request.case,
        "config": request.config,
        "overrides": request.overrides,
        "batch": request.batch,
        "regions": request.regions,
        "dtype": keras.mixed_precision.global_policy().compute_dtype,
        "tensorflow": tf.__version__,
        "images": request.batch,
    }

    def describe(*networks: Any) -> None:
        described = json.dumps(cases.network_sizes(config, *networks))
        (Path(str(request.weights)) / SIZES).write_text(described, encoding="utf-8")

    if request.case == STEP:
        trainer = cases.Trainer(config, tf.distribute.get_strategy())
        tcp = trainer.model
        describe(tcp.ema, tcp.discriminator, tcp.patch_discriminator)

        def step(image: tf.Tensor, position: tf.Tensor) -> dict[str, tf.Tensor]:
            gradients, means = tcp.gradients_and_means({"image": image, "position": position})
            tcp.update(gradients)
            return means

        inputs = _own_inputs(STEP, [trainer.batch[name] for name in ("image", "position")])
        entry["phases"] = {
            " ".join(phase) or "plain": {"step": number, "share": share, "flops": trainer.flops(tcp.gradients, phase)}
            for phase, (number, share) in trainer.phases.items()
        }
        entry["flops"] = measuring.weighted([(phase["share"], phase["flops"]) for phase in entry["phases"].values()])
        most = max(entry["phases"].values(), key=lambda phase: phase["flops"])
        tcp.step.assign(most["step"])
        states = [tcp.step, *tcp.variables, *tcp.optimizer.variables, *tcp.discriminator_optimizer.variables]
        entry.update(_program(step, inputs, request, states, tcp.step))
        # With colours mixed at random every term is another: XLA draws other numbers.
        if request.batch <= CHECKED_STEP and not config.augment.content_colours:
            entry["first"] = {name: float(mean) for name, mean in tf.function(step, autograph=False)(*inputs).items()}
        return entry
    autoencoder = AutoEncoder.from_config(config)
    describe(autoencoder, critics.build_discriminator(config), critics.build_patch_discriminator(config))
    function, given = cases.inference_call(autoencoder, config, request)
    inputs = _own_inputs(request.case, given)
    entry["flops"] = cases.asked_flops(function, *inputs)
    states = [*autoencoder.encoder.variables, *autoencoder.generator.variables]
    entry.update(_program(function, inputs, request, states))
    first = [value[:1].numpy().astype(np.float32) for value in tf.nest.flatten(function(*inputs))]
    np.savez(Path(str(request.weights)) / f"{entry['file']}.npz", *first)
    return entry


def _draws(case: str) -> Sequence[Optional[str]]:
    return DRAWS.get(case, [PICTURES, PICTURES, STRIPES])


def _own_inputs(case: str, inputs: Sequence[Any]) -> list[Any]:
    """The same inputs with values that another machine can draw, too."""
    import tensorflow as tf

    return [
        value if kind is None else tf.constant(drawn(kind, value.shape, place))
        for place, (kind, value) in enumerate(zip(_draws(case), inputs))
    ]


def _program(
    function: Callable[..., Any], inputs: Sequence[Any], request: Request, states: Sequence[Any], step: Any = None
) -> dict[str, Any]:
    import tensorflow as tf

    from tcp_tf import target

    with target.assumed(gpu=True, xla=True):
        compiled = tf.function(function, autograph=False, jit_compile=True)
        concrete = compiled.get_concrete_function(*inputs)
        program = compiled.experimental_get_compiler_ir(*inputs)(stage="hlo_serialized")
    plain = [getattr(state, "value", state) if not isinstance(state, tf.Variable) else state for state in states]
    variables = {id(variable.handle): variable for variable in plain}
    listed, place_of_step = [], None
    for place, value in enumerate([*inputs, *concrete.captured_inputs]):
        variable = variables.get(id(value))
        array = np.asarray(value if variable is None else variable)
        told: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
        kind = _draws(request.case)[place] if place < len(inputs) else NORMAL if array.any() else ZEROS
        if array.size <= LISTED and place >= len(inputs) or kind is None:
            told["values"] = array.tolist()
        elif variable is None and place >= len(inputs):
            raise ValueError(f"input {place}, {array.shape}: a constant too large to be written out")
        else:
            told["draw"] = kind
        if variable is not None and told.get("draw") == NORMAL:
            variable.assign(drawn(NORMAL, array.shape, place))
        if step is not None and variable is step:
            place_of_step = place
        listed.append(told)
    name = "_".join(
        [
            request.case.replace("/", "-"),
            Path(request.config).stem,
            str(request.batch),
            *([f"regions{request.regions}"] if request.regions > 1 else []),
            *(override.replace("=", "-") for override in request.overrides),
        ]
    )
    directory = Path(str(request.weights))
    (directory / f"{name}.hlo.gz").write_bytes(gzip.compress(program, mtime=0))
    return {"file": name, "inputs": listed, **({"step": place_of_step} if step is not None else {})}


if __name__ == "__main__":
    sys.exit(main())
