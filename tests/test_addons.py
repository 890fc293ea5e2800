"""Both stacks, this one and the other: optimizers' states, and models that cross over.

The tests of tensorflow-addons' own optimizers run in the addons stack, those of crossing over where TCP_TF_OTHER_PYTHON
names an interpreter of the other stack, as in `make test-addons`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from runners import stack_runner
from small import SETTINGS, TINY, checkpoint_arrays, relative_difference, small_config

import train
from tcp_tf import config as configuration
from tcp_tf import optimizers, run_dir
from tcp_tf.config import OptimizerConfig
from tcp_tf.model import TCP

ROOT = Path(__file__).resolve().parents[1]
OTHER = os.environ.get("TCP_TF_OTHER_PYTHON", "")
HERE = importlib.util.find_spec("tensorflow_addons") is not None
addons_only = pytest.mark.skipif(not HERE, reason="tensorflow-addons is in the addons stack only")
needs_other = pytest.mark.skipif(not OTHER, reason="TCP_TF_OTHER_PYTHON names no interpreter of the other stack")

ADAM = {"name": "adam"}
RECTIFIED: dict[str, Any] = {"name": "Addons>RectifiedAdam", "args": {"beta_1": 0.0, "beta_2": 0.99}}
LOOKAHEAD: dict[str, Any] = {"name": "Addons>Lookahead", "args": {"optimizer": ADAM, "sync_period": 3}}


def make(values: dict[str, Any], rate: float = 0.1) -> Any:
    settings = OptimizerConfig.model_validate({"learning_rate": rate, **values})
    return optimizers.make(settings, "optimizer.generator")


# ---- optimizers by name


def test_the_addons_quickstart_differs_in_the_optimizers_alone() -> None:
    ours, usual = (configuration.load(ROOT / "configs" / f"quickstart{name}.yaml") for name in ("_addons", ""))
    assert ours.model_copy(update={"optimizer": usual.optimizer}) == usual
    assert {ours.optimizer.generator.name, ours.optimizer.discriminator.name} == {"Addons>RectifiedAdam"}


@pytest.mark.skipif(HERE, reason="says what is told where tensorflow-addons is not installed")
def test_elsewhere_the_line_says_which_stack_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(TINY), "--run-dir", str(tmp_path / "run")]
    assert train.main([*arguments, "--set", "optimizer.discriminator={name: 'Addons>LAMB'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert "optimizer.discriminator.name: 'Addons>LAMB' needs the addons stack" in line
    assert "requirements-addons.txt" in line
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adamant"}, "optimizer.generator.name: no optimizer 'adamant' is registered"),
        ({"name": "sgd", "args": {"momentun": 0.9}}, "optimizer.generator.args: not what 'sgd' takes: "),
        pytest.param(
            {"name": "Addons>Adamant"},
            "optimizer.generator.name: no optimizer 'Addons>Adamant' is registered",
            marks=addons_only,
        ),
        pytest.param(
            {"name": "Addons>LAMB", "args": {"beta": 1}},
            "optimizer.generator.args: not what 'Addons>LAMB' takes: ",
            marks=addons_only,
        ),
        pytest.param(
            {"name": "Addons>Lookahead", "args": {"optimizer": "adam"}},
            "optimizer.generator.args.optimizer: must be a group of keys with a name and perhaps args, got 'adam'",
            marks=addons_only,
        ),
        pytest.param(
            {"name": "Addons>Lookahead", "args": {"optimizer": {"name": "sgd", "args": {"learning_rate": 1.0}}}},
            "optimizer.generator.args.optimizer.args.learning_rate: belongs to the outer one, in optimizer.generator.",
            marks=addons_only,
        ),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(optimizers.OptimizerError, match=f"^{re.escape(message)}") as refused:
        make(values)
    assert len(str(refused.value).splitlines()) == 1


def variables_and_gradients(step: int) -> tuple[list[tf.Variable], list[tf.Tensor]]:
    shapes = ([3, 4], [5])
    variables = [tf.Variable(tf.random.stateless_normal(shape, [i, 1]), name=f"v{i}") for i, shape in enumerate(shapes)]
    return variables, [tf.random.stateless_normal(shape, [i, 100 + step]) for i, shape in enumerate(shapes)]


def descend(optimizer: Any, variables: list[tf.Variable], first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.apply_gradients(zip(variables_and_gradients(step)[1], variables))


@pytest.mark.parametrize(
    ("values", "slots"),
    [
        (ADAM, 2),
        ({"name": "adam", "args": {"amsgrad": True}}, 3),
        ({"name": "sgd", "args": {"momentum": 0.9}}, 1),
        ({"name": "rmsprop"}, 1),
        pytest.param(RECTIFIED, 2, marks=addons_only),
        pytest.param({"name": "Addons>LAMB"}, 2, marks=addons_only),
        pytest.param({"name": "Addons>AdaBelief"}, 2, marks=addons_only),
        pytest.param({"name": "Addons>LazyAdam"}, 2, marks=addons_only),
        pytest.param({"name": "Addons>NovoGrad"}, 2, marks=addons_only),
        pytest.param(LOOKAHEAD, 3, marks=addons_only),
        pytest.param({"name": "Addons>Lookahead", "args": {"optimizer": RECTIFIED}}, 3, marks=addons_only),
    ],
    ids=lambda value: str(value.get("name")) if isinstance(value, dict) else None,
)
def test_a_restored_optimizer_goes_on_exactly(values: dict, slots: int, tmp_path: Path) -> None:
    """Twelve steps, and seven steps, saved, restored into a fresh one, five more."""
    calm, _ = variables_and_gradients(0)
    optimizer = make(values)
    optimizers.build(optimizer, calm)
    descend(optimizer, calm, 0, 7)
    state = optimizers.state(optimizer)
    prefix = tf.train.Checkpoint(state=state, variables=calm).save(str(tmp_path / "saved"))
    assert len(state._variables) == 2 + slots * len(calm)
    descend(optimizer, calm, 7, 12)

    resumed, _ = variables_and_gradients(0)
    fresh = make(values)
    optimizers.build(fresh, resumed)
    again = optimizers.state(fresh)
    tf.train.Checkpoint(state=again, variables=resumed).restore(prefix).assert_consumed()
    assert int(again._variables[0]) == 7
    descend(fresh, resumed, 7, 12)
    for ours, theirs in zip([*resumed, *again._variables], [*calm, *state._variables]):
        if not isinstance(ours, optimizers.Zeros):
            np.testing.assert_array_equal(ours, theirs)


@addons_only
@pytest.mark.parametrize("values", [RECTIFIED, LOOKAHEAD], ids=lambda value: value["name"])
def test_two_replicas_are_one(values: dict) -> None:
    """Gradients are summed over replicas, so each brings half."""
    expected, _ = variables_and_gradients(0)
    alone = make(values)
    optimizers.build(alone, expected)
    descend(alone, expected, 0, 7)
    # Without collectives: the first of another strategy, of another shape, would be taken for this one's in TF 2.15.
    devices = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=devices)
    with strategy.scope():
        variables, _ = variables_and_gradients(0)
        optimizer = make(values)
        optimizers.build(optimizer, variables)

    def step(gradients: list[tf.Tensor]) -> None:
        optimizer.apply_gradients(zip([gradient / 2 for gradient in gradients], variables))

    for number in range(7):
        strategy.run(step, args=(variables_and_gradients(number)[1],))
    for variable, value in zip(variables, expected):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-5)


@addons_only
def test_the_moving_average_of_addons_is_the_one_that_the_model_keeps() -> None:
    """`average + (1 - d) (weight - average)` after every step, from the first weights on, as in `TCP.train_step`."""
    moving = {"name": "Addons>MovingAverage", "args": {"optimizer": {"name": "sgd"}, "average_decay": 0.8}}
    variables, _ = variables_and_gradients(0)
    optimizer = make(moving)
    optimizers.build(optimizer, variables)
    expected = [variable.numpy() for variable in variables]
    for step in range(5):
        descend(optimizer, variables, step, step + 1)
        expected = [average + 0.2 * (variable.numpy() - average) for average, variable in zip(expected, variables)]
    for variable, average in zip(variables, expected):
        np.testing.assert_allclose(optimizer.get_slot(variable, "average"), average, atol=1e-6)


def test_a_continued_training_takes_the_configured_learning_rate(tmp_path: Path) -> None:
    model = TCP(small_config())
    model.compile()
    manager = run_dir.manager(tmp_path, model.checkpoint(), 1)
    manager.save()
    slower = TCP(small_config("optimizer.generator.learning_rate=1e-4"))
    slower.compile()
    slower.checkpoint().restore(manager.latest_checkpoint).assert_consumed()
    assert float(slower.optimizer.learning_rate) == pytest.approx(1e-4)
    assert float(slower.discriminator_optimizer.learning_rate) == pytest.approx(0.002)


# ---- a training with them, killed and resumed


def run(python: str, *arguments: object) -> None:
    """One process in the project's directory, at its end."""
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT)}
    command = [python, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@addons_only
@pytest.mark.slow(60)
def test_killed_and_resumed_with_rectified_adam_and_lookahead(tiny_run: Path, tmp_path: Path) -> None:
    """Bit for bit: rectified Adam for encoder and generator, Lookahead around Adam for the discriminators."""
    photos = run_dir.read_config(tiny_run).data
    settings = [*SETTINGS, f"data.source={photos.source}", f"data.data_dir={photos.data_dir}"]
    settings += ["data.validation_fraction=0.3"]
    settings += ["deterministic=true", "train.kimg=0.08", "train.checkpoint_kimg=0.016", "train.tick_kimg=0.004"]
    settings += [f"optimizer.generator={RECTIFIED}", f"optimizer.discriminator={LOOKAHEAD}"]
    sets = [part for each in settings for part in ("--set", each)]
    arguments = ["train.py", "--config", TINY, "--no-evaluation", *sets, "--run-dir"]
    run(sys.executable, *arguments, tmp_path / "calm")
    command = [sys.executable, *map(str, arguments), str(tmp_path / "killed")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        log, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 300
        while not (log.exists() and '"step": 7, ' in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert run_dir.latest_checkpoint(tmp_path / "killed") != run_dir.latest_checkpoint(tmp_path / "calm")
    run(sys.executable, *arguments, tmp_path / "killed")
    calm, killed = checkpoint_arrays(tmp_path / "calm"), checkpoint_arrays(tmp_path / "killed")
    assert set(calm) == set(killed)
    assert sum(name.startswith("model/discriminator_optimizer/_variables/") for name in calm) > 90
    assert not [name for name in calm if not np.array_equal(calm[name], killed[name])]


# ---- crossing over


def there(kind: str, directory: Path, folder: Path) -> dict[str, np.ndarray]:
    """What the other stack makes of it; see `runners/stack_runner.py`."""
    output = folder / f"{kind}.npz"
    run(OTHER, ROOT / "tests" / "runners" / "stack_runner.py", kind, directory, output)
    with np.load(output) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def run_of_the_other(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as `tiny_run`, trained in the other stack."""
    directory = tmp_path_factory.mktemp("other") / "run"
    run(OTHER, "train.py", "--config", tiny_run / "config.yaml", "--run-dir", directory, "--no-evaluation")
    return directory


def assert_same(ours: dict[str, Any], theirs: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(theirs)
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, atol=1e-4, err_msg=name)


@needs_other
@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "there"])
def test_a_run_answers_alike_in_both_stacks(where: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    directory = request.getfixturevalue("tiny_run" if where == "here" else "run_of_the_other")
    answers = stack_runner.of_run(str(directory))
    assert np.std(answers["decoded"]) > 0.01
    assert_same(answers, there("run", directory, tmp_path))


@needs_other
@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "there"])
def test_a_training_goes_on_in_the_other_stack(where: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """One step from the same checkpoint: networks, averages, both optimizers' slots and counters."""
    directory = request.getfixturevalue("tiny_run" if where == "here" else "run_of_the_other")
    ours, theirs = stack_runner.after_a_step(str(directory)), there("step", directory, tmp_path)
    both, means = set(ours) & set(theirs), set(ours) ^ set(theirs)
    # The mean of the gradients, which the current stack does not keep where there is no momentum.
    assert len(means) == sum(name.startswith("networks/") for name in both)
    assert {name.split("/")[0] for name in means} == {"optimizer", "discriminator_optimizer"}
    assert int(ours["step/0000"]) == int(ours["optimizer/0000"]) == 5
    for part in ("networks", "averages", "optimizer", "discriminator_optimizer", "step"):
        names = sorted(name for name in both if name.startswith(f"{part}/"))
        assert [ours[name].shape for name in names] == [theirs[name].shape for name in names]
        assert relative_difference([ours[name] for name in names], [theirs[name] for name in names]) < 1e-4, part


@needs_other
@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "there"])
def test_an_export_loads_in_the_other_stack(where: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    directory = request.getfixturevalue("tiny_run" if where == "here" else "run_of_the_other")
    base = tmp_path / "models"
    run(sys.executable if where == "here" else OTHER, "-m", "export", "--run-dir", directory, "--output", base)
    expected = stack_runner.of_run(str(directory))
    expected = {
        name: np.clip(value, -1, 1) if name in ("decoded", "blend") else value for name, value in expected.items()
    }
    assert_same(expected, there("export", base / "1", tmp_path))
    assert_same(expected, {name: np.asarray(value) for name, value in stack_runner.of_export(str(base / "1")).items()})
