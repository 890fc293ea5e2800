"""Several processes, on as many machines as one likes, that are one training: who they are.

TensorFlow's `MultiWorkerMirroredStrategy` does the work. Every worker runs the same command with `multi_worker: true`
and an environment variable TF_CONFIG that names all workers and says which of them it is:

    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}'

All see the same run directory. The chief, the first of them, is the only one that writes there.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple, Optional

import tensorflow as tf

ABORTED = "Collective ops is aborted by: "  # how TensorFlow begins to say that another worker does not answer


class Worker(NamedTuple):
    """One of `total` workers; `number` counts from 0."""

    number: int
    total: int

    @property
    def is_chief(self) -> bool:
        return self.number == 0


ALONE = Worker(0, 1)


class WorkerLost(RuntimeError):
    """Another worker of this training ended or does not answer any more."""


def this_one(text: Optional[str] = None) -> Worker:
    """Who this process is.

    Args:
        text: instead of the environment variable TF_CONFIG.
    Raises:
        ValueError: it is not set, or does not name workers of which this is one.
    """
    text = os.environ.get("TF_CONFIG", "") if text is None else text
    try:
        told = json.loads(text)
        cluster, task = told["cluster"], told["task"]
        jobs = {job: len(cluster.get(job, ())) for job in ("chief", "worker")}
        before = {"chief": 0, "worker": jobs["chief"]}[task["type"]]
        if set(cluster) <= set(jobs) and 0 <= int(task["index"]) < jobs[task["type"]] and jobs["chief"] <= 1:
            return Worker(before + int(task["index"]), sum(jobs.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f"multi_worker: the environment variable TF_CONFIG must name all workers and which of them this is, "
        f"got {text[:200]!r}"
    )


def lost(error: tf.errors.OpError) -> Optional[str]:
    """In a few words, why another worker is gone; None where that is not what the error says."""
    text = str(error)
    return text.partition(ABORTED)[2].splitlines()[0].strip() if ABORTED in text else None
