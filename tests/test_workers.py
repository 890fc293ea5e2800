"""Two workers on loopback are one training: the weights of two replicas, one writer, a sentence when one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from small import checkpoint_arrays, relative_difference

from tcp_tf import checkpoints, run_dir, workers
from tcp_tf.workers import Worker

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("model.max_channels=8", "data.batch_size=4", "deterministic=true", "train.tick_kimg=0.004")

TWO_DEVICES = """
import sys, tensorflow as tf, train
one = tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [one, one])
sys.exit(train.main(sys.argv[1:]))
"""


def told(index: int, ports: list[int], kind: str = "worker") -> str:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_who_this_is() -> None:
    assert workers.this_one(told(0, [1, 2])) == Worker(0, 2) and workers.this_one(told(1, [1, 2])) == Worker(1, 2)
    assert workers.this_one(told(0, [1, 2])).is_chief and not workers.this_one(told(1, [1, 2])).is_chief
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    assert workers.this_one(json.dumps({"cluster": cluster, "task": {"type": "chief", "index": 0}})) == Worker(0, 3)
    assert workers.this_one(json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}})) == Worker(2, 3)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "{}", '{"cluster": {}, "task": {}}', told(2, [1, 2]), told(-1, [1]), told(0, [1], "evaluator")],
)
def test_what_names_no_workers_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="multi_worker: the environment variable TF_CONFIG must name") as refused:
        workers.this_one(text)
    assert "\n" not in str(refused.value)


def test_which_errors_mean_that_a_worker_is_gone() -> None:
    text = "Graph execution error:\n\nCollective ops is aborted by: Socket closed\nAdditional GRPC error information"
    assert workers.lost(tf.errors.UnavailableError(None, None, text)) == "Socket closed"
    assert workers.lost(tf.errors.InvalidArgumentError(None, None, "shapes differ")) is None


class Pair:
    """Two workers, each a `train.py` of its own, in one run directory."""

    def __init__(self, directory: Path, *settings: str) -> None:
        ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        self.processes = []
        for index in range(2):
            variables = {**os.environ, "TF_CONFIG": told(index, ports), "TF_CPP_MIN_LOG_LEVEL": "2"}
            command = train(directory, "multi_worker=true", *settings)
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
            self.processes.append(subprocess.Popen(command, cwd=ROOT, env=variables, **pipes))  # type: ignore[call-overload]

    def end(self) -> list[tuple[int, str, str]]:
        """Exit code, standard output and standard error of both."""
        found = [process.communicate(timeout=300) for process in self.processes]
        return [(process.returncode, *texts) for process, texts in zip(self.processes, found)]


def train(directory: Path, *settings: str) -> list[str]:
    arguments = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    tiny = str(ROOT / "configs" / "tiny.yaml")
    return [sys.executable, "train.py", "--config", tiny, "--run-dir", str(directory), "--no-evaluation", *arguments]


def weights(run: Path, name: str) -> list[np.ndarray]:
    """Networks and averages of a checkpoint."""
    arrays = checkpoint_arrays(run, name)
    return [arrays[name] for name in sorted(arrays) if "optimizer" not in name and "/step" not in name]


@pytest.mark.long
@pytest.mark.slow(100)
def test_two_workers_are_two_replicas_and_survive_the_loss_of_one(tmp_path: Path) -> None:
    six = ("train.kimg=0.024", "train.checkpoint_kimg=0.024")
    command = train(tmp_path / "replicas", "replicas=2", *six)
    subprocess.run([sys.executable, "-c", TWO_DEVICES, *command[2:]], cwd=ROOT, check=True, capture_output=True)
    run = tmp_path / "workers"
    pair = Pair(run, "train.kimg=40", "train.checkpoint_kimg=0.024", "train.keep_checkpoints=999")
    log, deadline = run / "metrics.jsonl", time.monotonic() + 200
    while not log.is_file() or len(log.read_text().splitlines()) < 10:
        assert all(process.poll() is None for process in pair.processes) and time.monotonic() < deadline
        time.sleep(0.05)
    pair.processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    code, _, errors = pair.end()[0]
    assert time.monotonic() - killed < 60
    (line,) = [line for line in errors.splitlines() if line.startswith("train.py: ")]
    assert code == 2 and "Traceback" not in errors
    newest = str(run_dir.latest_checkpoint(run))
    assert line.startswith("train.py: another worker is gone (") and line.endswith(f"to go on from {newest}")

    assert relative_difference(weights(run, "ckpt-6"), weights(tmp_path / "replicas", "ckpt-6")) < 1e-5
    # Only the chief wrote: every step stands once in the log.
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert {file.name.split(".")[-3] for file in (run / "tensorboard").iterdir()} == {str(pair.processes[0].pid)}

    # Both started again go on from there; with fewer terms, which take less time to trace.
    reached = checkpoints.number_of(newest)
    fewer = ["loss.dp={real: 0, fake: 0, r1: 0}", "loss.g.patch_gan=0", "loss.d.r1=0", "loss.g.content_alignment=0"]
    pair = Pair(run, f"train.kimg={(reached + 2) * 4 / 1000}", *fewer)
    for code, output, errors in pair.end():
        assert code == 0 and f"resumed from {newest}" in output, errors[-2000:]
    assert checkpoints.number_of(str(run_dir.latest_checkpoint(run))) == reached + 2
