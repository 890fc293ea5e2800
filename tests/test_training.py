"""`train.py` as a person uses it: refusals, a run from start to end, and a run that is killed, stopped and resumed.

The runs are in processes of their own, on a folder of small pictures, with `deterministic: true`. What needs no whole
training calls `train.main` in this process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import tensorflow as tf
from kills import cut, flip
from PIL import Image
from small import SETTINGS, TINY, checkpoint_arrays, small_config

import train
from tcp_tf import allocator, callbacks, checkpoints, run_dir, training
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.model import TCP

ROOT = Path(__file__).resolve().parents[1]
STEPS, EVERY = 56, 8  # steps of the training, and from one checkpoint to the next
KILLS = int(os.environ.get("TCP_KILLS", "0"))  # of real processes, beside those of `runs`; 20 take some minutes
KIMG = [f"train.kimg={STEPS * 4 / 1000}", f"train.checkpoint_kimg={EVERY * 4 / 1000}", "train.tick_kimg=0.004"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small pictures."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((30, 24), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def arguments(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of the small training, without its run directory."""
    settings = [*SETTINGS, *KIMG, f"data.source=folder:{photos}", f"data.data_dir={tmp_path_factory.mktemp('index')}"]
    settings += ["data.validation_fraction=0.3", "deterministic=true", "train.grid_kimg=0.1", "train.concurrent=2"]
    return ["--config", str(TINY), "--no-evaluation", *(part for each in settings for part in ("--set", each))]


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1", **environment}
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def lines_of(directory: Path) -> list[dict[str, Any]]:
    """The log, without a last line that a kill cut off."""
    whole = re.findall(r"^(.*)\n", (directory / "metrics.jsonl").read_text(), re.M)
    return [json.loads(line) for line in whole]


def wait_for_step(process: subprocess.Popen, directory: Path, step: int) -> None:
    """Returns as soon as the training has logged this step."""
    deadline = time.monotonic() + 300
    pattern = re.compile(rf'"step": {step}, ')
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ended before step {step}: {finish(process)[2][-2000:]}"
        file = directory / "metrics.jsonl"
        if file.exists() and pattern.search(file.read_text()):
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached in time")


# ---- what needs no training


def test_an_unknown_key_is_refused_before_tensorflow_starts() -> None:
    code, output, errors = finish(start("--set", "loss.r1_gama=2", PYTHONPROFILEIMPORTTIME="1"))
    messages = [line for line in errors.splitlines() if not line.startswith("import time:")]
    assert code == 2 and output == ""
    assert messages == ["train.py: loss.r1_gama: unknown key; did you mean loss.r1_gamma?"]
    imported = {line.rpartition("|")[2].strip() for line in errors.splitlines()}
    assert "pydantic" in imported and not imported & {"tensorflow", "keras", "numpy"}


@pytest.mark.parametrize("given", [{}, {"TF_ENABLE_ONEDNN_OPTS": "0"}])
def test_tensorflow_will_take_onednn_unless_told_otherwise(given: dict[str, str]) -> None:
    program = "import os, runpy, sys\nsys.argv[1:] = ['--set', 'seed=none']\n"
    program += "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
    program += "except SystemExit:\n    print(os.environ['TF_ENABLE_ONEDNN_OPTS'], 'tensorflow' in sys.modules)"
    variables = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    variables.update(allocator.SETTINGS, PYTHONPATH=str(ROOT), **given)  # with those, the program does not start anew
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, encoding="utf-8"
    )
    assert done.stdout == ("0 False\n" if given else "1 False\n"), done.stderr


def test_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert train.main(["--config", str(TINY), "--set", "seed=7", "--dry-run", "--run-dir", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "seed: 7" in output and "batch_size: 4" in output
    counts = dict(re.findall(r"^  (\w+) +([\d,]+)$", output, re.M))
    assert set(counts) == {"encoder", "generator", "discriminator", "patch_discriminator"}
    assert re.search(r"activations +\d+ MiB", output)
    assert not (tmp_path / "run").exists()


def test_threads_of_a_training() -> None:
    threads = (
        "[read() for read in (threading.get_inter_op_parallelism_threads, threading.get_intra_op_parallelism_threads)]"
    )
    program = (
        "import os; os.sched_getaffinity = lambda _: range(8)\n"
        "from tcp_tf import config, training\n"
        "from tensorflow.config import threading\n"
        f"training.prepare(config.load({str(TINY)!r}, ['train.concurrent=2']))\n"
        f"print({threads})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.stdout == "[2, 6]\n", done.stderr[-2000:]


def test_threads_are_those_of_the_parts_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[int] = []
    monkeypatch.setattr(training, "share_cores", shared.append)
    for overrides in (["data.batch_size=12"], ["data.batch_size=2"], ["data.batch_size=12", "train.xla=true"]):
        training.prepare(small_config("train.concurrent=4", *overrides))
    assert shared == [3], "one part keeps all cores"


def test_threads_that_are_there_stay(caplog: pytest.LogCaptureFixture) -> None:
    tf.zeros([])  # TensorFlow has begun
    before = tf.config.threading.get_inter_op_parallelism_threads()
    training.share_cores(2)
    assert tf.config.threading.get_inter_op_parallelism_threads() == before
    assert "train.concurrent: TensorFlow has threads already" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["replicas=2", "data.batch_size=6"], "same even number of pictures, got 6 for 2 replicas"),
        (["replicas=3", "data.batch_size=6"], "replicas: 3 asked for, 2 found"),
        (["replicas=['GPU:7']"], "replicas: no device 'GPU:7'; found: "),
        (["data.source=folder:/nowhere"], "/nowhere"),
        (["train.start_from=/nowhere"], "/nowhere: not a run directory"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    arguments: list, overrides: list, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two CPU devices stand in for two GPUs."""
    sets = [part for each in overrides for part in ("--set", each)]
    assert train.main([*arguments, "--set", "deterministic=false", *sets, "--run-dir", str(tmp_path / "run")]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_training_starts_from_another_model(tmp_path: Path) -> None:
    config = small_config()
    other = AutoEncoder.from_config(config)
    run_dir.write_config(tmp_path, config)
    run_dir.write_averages(tmp_path, other)
    model = TCP(config)
    training.take_averages(model, str(tmp_path))
    taken = [*model.encoder.weights, *model.generator.weights, *model.encoder_ema.weights, *model.generator_ema.weights]
    given = 2 * [*other.encoder.weights, *other.generator.weights]
    assert len(taken) == len(given)
    for target, source in zip(taken, given):
        np.testing.assert_array_equal(target, source)
    larger = TCP(small_config("model.style_dim=24"))
    before = [weight.numpy() for weight in larger.weights]
    with pytest.raises(ValueError, match="networks of other sizes: model.style_dim 16$"):
        training.take_averages(larger, str(tmp_path))
    for weight, old in zip(larger.weights, before):
        np.testing.assert_array_equal(weight, old)


def logger(tmp_path: Path, model: TCP, start_step: int = 0) -> callbacks.Metrics:
    """Metrics with one line every two steps of four pictures."""
    metrics = callbacks.Metrics(tmp_path, 0.008, 4, start_step, 10)
    metrics.set_model(model)
    metrics.on_train_begin()
    return metrics


@pytest.fixture(scope="module")
def model() -> TCP:
    return TCP(small_config("loss.r1_every=4", "loss.consistency_start_kimg=0.008"))


def test_lazy_terms_are_averaged_over_the_steps_that_computed_them(tmp_path: Path, model: TCP) -> None:
    metrics = logger(tmp_path, model)
    for step in range(6):
        late = 5.0 if step >= 2 and step % 2 == 0 else 0.0
        logs = {"g/l1": float(step), "d/r1": 8.0 + step if step % 4 == 0 else 0.0, "g/content_alignment": late}
        metrics.on_train_batch_end(step, logs)
    metrics.close()
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert [line["kimg"] for line in lines] == [0.008, 0.016, 0.024]
    assert [line["g/l1"] for line in lines] == [0.5, 2.5, 4.5]
    assert [line.get("d/r1") for line in lines] == [8, None, 12]
    assert [line.get("g/content_alignment") for line in lines] == [None, 5, 5]
    assert all(line["images_per_second"] > 0 for line in lines)


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path, model: TCP) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 2, "g/l1": 1}\n{"step": 4, "g/l1": 1}\n{"step": 6, "g/l1": 1}\n{"step": 8, "g/')
    logger(tmp_path, model, start_step=4).close()
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4]
    assert os.listdir(tmp_path).count("metrics.jsonl") == 1


def test_spoilt_weights_are_not_saved(tmp_path: Path) -> None:
    """A step can spoil the weights while its losses, taken before it, are still fine."""
    model = TCP(small_config())
    manager = run_dir.manager(tmp_path, tf.train.Checkpoint(model=model), 2)
    saver = callbacks.Checkpoints(manager, 0.008, 4, 0)
    saver.set_model(model)
    for step in range(2):
        saver.on_train_batch_end(step)
    good = run_dir.latest_checkpoint(tmp_path)
    assert good == str(tmp_path / "checkpoints" / "ckpt-2")
    model.generator.weights[0].assign(model.generator.weights[0] * math.nan)
    saver.on_train_batch_end(2)
    with pytest.raises(callbacks.NonFiniteLoss, match=rf"not finite after step 4, .*; last good checkpoint: {good}"):
        saver.on_train_batch_end(3)
    assert run_dir.latest_checkpoint(tmp_path) == good


def test_a_second_signal_acts_as_usual() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop = callbacks.StopOnSignal()
    stop.on_train_begin()
    stop.on_train_batch_end(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with pytest.raises(callbacks.Interrupted, match="SIGTERM"):
        stop.on_train_batch_end(1)


@pytest.mark.parametrize("count", [1, 2, 3, 13])
def test_grids_of_few_pictures(model: TCP, count: int) -> None:
    pictures = np.zeros((count, 16, 16, 3), np.float32)
    rows = max(1, min(6, count // 2))
    assert callbacks.swap_grid(model, pictures).shape == ((rows + 1) * 16, (rows + 2) * 16, 3)
    assert callbacks.edit_grid(model, pictures).shape == (rows * 16, 5 * 16, 3)


# ---- whole runs


@dataclass
class Ended:
    """How a process ended, and the last step that it logged."""

    code: int
    output: str
    errors: str
    step: int

    @property
    def resumed_from(self) -> int:
        found = re.search(r"resumed from .*/ckpt-(\d+)$", self.output, re.M)
        assert found is not None, self.output
        return int(found[1])


@dataclass
class Runs:
    """One training that nothing disturbs; the same killed, stopped, resumed; one stopped by Ctrl-C; a hopeless one."""

    calm: Path
    disturbed: Path
    interrupted: Path
    hopeless: Path
    ended: dict[str, Ended]


@pytest.fixture(scope="module")
def runs(arguments: list, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Six processes, never more than two at a time."""
    folder = tmp_path_factory.mktemp("runs")
    found = Runs(folder / "calm", folder / "disturbed", folder / "interrupted", folder / "hopeless", {})
    processes = []

    def run(name: str, directory: Path, *more: str, stop: Optional[signal.Signals] = None, after: int = 0) -> None:
        """One process; with `stop`, it gets that signal in one of six steps from `after` on."""
        process = start(*arguments, *more, "--run-dir", str(directory))
        processes.append(process)
        if stop is not None:
            wait_for_step(process, directory, random.randint(after, after + 5))
            process.send_signal(stop)
        result = finish(process)
        found.ended[name] = Ended(*result, lines_of(directory)[-1]["step"])

    def disturbed() -> None:
        run("killed", found.disturbed, stop=signal.SIGKILL, after=EVERY + 1)
        run("terminated", found.disturbed, stop=signal.SIGTERM, after=3 * EVERY)
        run("resumed", found.disturbed)

    def others() -> None:
        run("calm", found.calm)
        run("interrupted", found.interrupted, stop=signal.SIGINT, after=3)
        absurd = ["optimizer.generator.learning_rate=1e30", "train.checkpoint_kimg=0.004"]
        run("hopeless", found.hopeless, *(part for each in absurd for part in ("--set", each)))

    try:
        with ThreadPoolExecutor(2) as pool:
            for lane in [pool.submit(disturbed), pool.submit(others)]:
                lane.result()
        yield found
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow(75)
def test_a_run_leaves_what_it_should(runs: Runs) -> None:
    ended = runs.ended["calm"]
    assert ended.code == 0, ended.errors[-2000:]
    assert "resumed" not in ended.output and "kimg" in ended.errors and "img/s" in ended.errors
    assert "train.concurrent" not in ended.errors, "its threads are set before TensorFlow begins"
    lines = lines_of(runs.calm)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    weights = run_dir.read_config(runs.calm).loss.weights
    assert set(weights) <= set().union(*lines)
    grids = sorted(path.name for path in (runs.calm / "grids").iterdir())
    assert grids == [
        f"{kind}-{kimg}.png" for kind in ("edit", "swap") for kimg in ("00000.100", "00000.200", "00000.224")
    ]
    kept = sorted(path.stem for path in (runs.calm / "checkpoints").glob("*.index"))
    assert kept == [f"ckpt-{step}" for step in (40, 48, 56)], "the newest three"
    assert list((runs.calm / "tensorboard").glob("events*"))
    autoencoder, config = run_dir.load_autoencoder(runs.calm)
    assert config.deterministic and autoencoder.encode(np.zeros((1, 16, 16, 3), np.float32)).style.shape == (1, 16)


@pytest.mark.slow
def test_signals_save_and_the_same_command_goes_on(runs: Runs) -> None:
    for name, number, directory in (
        ("terminated", "SIGTERM", runs.disturbed),
        ("interrupted", "SIGINT", runs.interrupted),
    ):
        ended = runs.ended[name]
        assert ended.code == 0, ended.errors[-2000:]
        assert f"{number}: saved in {directory}; the same command continues from there" in ended.output
        assert "Traceback" not in ended.errors
    newest = run_dir.latest_checkpoint(runs.interrupted)
    assert newest is not None and newest.endswith(f"ckpt-{runs.ended['interrupted'].step}"), "the last finished step"
    killed, terminated, resumed = (runs.ended[name] for name in ("killed", "terminated", "resumed"))
    assert killed.code == -signal.SIGKILL
    assert 0 <= killed.step - terminated.resumed_from <= EVERY and terminated.resumed_from % EVERY == 0
    assert resumed.resumed_from == terminated.step, "the last finished step"
    assert resumed.code == 0 and resumed.step == STEPS, resumed.errors[-2000:]


@pytest.mark.slow
def test_killed_and_resumed_is_never_killed_bit_for_bit(runs: Runs) -> None:
    """Weights, averages, both optimizers' slots and counters."""
    calm, disturbed = checkpoint_arrays(runs.calm), checkpoint_arrays(runs.disturbed)
    assert set(calm) == set(disturbed)
    for part in ("encoder/", "generator/", "encoder_ema/", "generator_ema/", "discriminator/", "patch_discriminator/"):
        assert any(name.startswith(f"model/{part}") for name in calm)
    for optimizer in ("optimizer", "discriminator_optimizer"):
        assert sum(name.startswith(f"model/{optimizer}/_variables/") for name in calm) > 50
    differing = [name for name in calm if not np.array_equal(calm[name], disturbed[name])]
    assert not differing, f"{len(differing)} of {len(calm)} differ: {differing[:3]}"


@pytest.mark.slow
def test_the_log_of_a_disturbed_run_is_that_of_a_calm_one(runs: Runs) -> None:
    calm, disturbed, interrupted = (
        [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines_of(directory)]
        for directory in (runs.calm, runs.disturbed, runs.interrupted)
    )
    assert disturbed == calm
    assert interrupted == calm[: len(interrupted)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", ["model.style_dim=24", "data.resolution=32", "model.noise=false", "optimizer.discriminator={name: sgd}"]
)
def test_other_networks_in_an_existing_run_are_refused(
    runs: Runs, arguments: list, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (runs.calm / "config.yaml").read_text()
    assert train.main([*arguments, "--set", change, "--run-dir", str(runs.calm)]) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert str(runs.calm) in errors and re.split("[={]", change)[0] in errors and " -> " in errors
    assert (runs.calm / "config.yaml").read_text() == before


@pytest.mark.slow
def test_other_settings_are_taken_and_told(runs: Runs) -> None:
    config = run_dir.read_config(runs.calm)
    loss = config.loss.model_copy(update={"r1_gamma": 3.0})
    lines: list[str] = []
    training.check_resumption(runs.calm, config.model_copy(update={"loss": loss, "seed": 5}), lines.append)
    assert lines == [f"{runs.calm}: goes on with seed 0 -> 5, loss.r1_gamma 10.0 -> 3.0"]
    training.check_resumption(runs.calm, config, lines.append)
    assert len(lines) == 1


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_refused(
    runs: Runs, arguments: list, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only the restoration sees: this argument gives Adam another slot."""
    change = ["--set", "optimizer.generator.args.amsgrad=true", "--set", "deterministic=false"]
    assert train.main([*arguments, *change, "--run-dir", str(runs.calm)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert len(errors) == 1 and "does not fit this configuration" in errors[0]


@pytest.mark.slow
def test_an_absurd_learning_rate_stops_the_run(runs: Runs) -> None:
    ended = runs.ended["hopeless"]
    assert ended.code == 2
    errors = [line for line in ended.errors.splitlines() if "train.py: " in line]
    assert len(errors) == 1 and "Traceback" not in ended.errors
    found = re.search(r"train\.py: .*g/.* not finite at step (\d+); last good checkpoint: (\S+)$", errors[0])
    assert found is not None, errors[0]
    assert found[2] == run_dir.latest_checkpoint(runs.hopeless) and 1 < int(found[1]) < 10
    arrays = checkpoint_arrays(runs.hopeless)
    assert all(np.all(np.isfinite(array)) for array in arrays.values() if array.dtype == np.float32)


@pytest.mark.slow(60)
@pytest.mark.one_stack
def test_kills_damage_and_a_full_disk_change_not_one_bit(runs: Runs, arguments: list, tmp_path: Path) -> None:
    """Checkpoints after every step, so that kills fall into their writing.

    The first process finds its disk full, TCP_KILLS processes are killed, and another one ends the training; each time
    something harms the newest checkpoint.
    """
    command = [*arguments, "--set", "train.checkpoint_kimg=0.004", "--run-dir", str(tmp_path)]
    folder, chance = tmp_path / "checkpoints", random.Random(KILLS)

    def begin(until: int) -> subprocess.Popen:
        """A process that has come to this step."""
        process = start(*command)
        try:
            wait_for_step(process, tmp_path, min(until, STEPS - 4))
        except BaseException:
            process.kill()
            raise
        return process

    process = begin(4)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))  # no file may grow: as if the disk were full
    code, output, errors = finish(process)
    assert code == 2 and "Traceback" not in errors, errors[-2000:]
    (line,) = [line for line in errors.splitlines() if "train.py: " in line]
    found = re.search(rf"train\.py: {tmp_path}/\S+ cannot be written: .+; last good checkpoint: (\S+)$", line)
    assert found is not None, line
    assert found[1] == run_dir.latest_checkpoint(tmp_path) and checkpoints.number_of(found[1]) >= 3
    flip(Path(f"{found[1]}.data-00000-of-00001"))

    def whole_and_damaged() -> tuple[str, str]:
        """The newest whole checkpoint, and what is to be said of a damaged newer one."""
        there = checkpoints.prefixes(folder)
        good = [prefix for prefix in there if not checkpoints.damage(prefix)][-1]
        return good, "damaged" if good == there[-1] else f"{there[-1]}: damaged, "

    good, damaged = whole_and_damaged()
    assert damaged != "damaged"
    for number in range(KILLS):
        process = begin(checkpoints.number_of(good) + 4)
        time.sleep(chance.uniform(0.0, 0.1))
        with contextlib.suppress(FileNotFoundError):  # training goes on, and may just be deleting it
            (cut, flip)[number % 2](Path(f"{checkpoints.prefixes(folder)[-1]}.data-00000-of-00001"))
        process.kill()
        code, output, errors = finish(process)
        assert code == -signal.SIGKILL, errors[-2000:]
        if "resumed" in output:  # the last of many may be killed before
            assert f"resumed from {good}" in output and (damaged in output) == (damaged != "damaged")
        good, damaged = whole_and_damaged()

    code, output, errors = finish(start(*command))
    assert code == 0, errors[-2000:]
    assert f"resumed from {good}" in output and (damaged in output) == (damaged != "damaged")
    calm, disturbed = checkpoint_arrays(runs.calm), checkpoint_arrays(tmp_path)
    assert set(calm) == set(disturbed)
    assert not [name for name in calm if not np.array_equal(calm[name], disturbed[name])]
    assert not [path for path in folder.iterdir() if path.name.startswith(checkpoints.WRITING)]
