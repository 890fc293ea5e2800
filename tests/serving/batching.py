"""The emulator's batching: requests that meet in time are run as one and split again.

As in the server: one queue per signature and set of outputs; a batch goes when it is full or has waited long enough; it
is padded to the next allowed size with the first row of its last request; what fails, fails for all that were merged;
and requests whose shapes differ beyond the first dimension fail as soon as they meet in one batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from serving.model import Arrays, Key, Run
from serving.status import StatusError, invalid


@dataclass
class _Task:
    inputs: Arrays
    size: int
    done: threading.Event = field(default_factory=threading.Event)
    outputs: Optional[Arrays] = None
    error: Optional[StatusError] = None


@dataclass
class _Batch:
    tasks: list[_Task] = field(default_factory=list)
    size: int = 0
    opened: float = field(default_factory=time.monotonic)


class Batcher:
    """Wraps a `Run` into one that batches.

    Args:
        run: runs one batch.
        allowed_sizes: ascending; the last one is the largest batch.
        wait: seconds that a batch may wait for company.
        max_batches: queued batches of one key, beyond which a request is UNAVAILABLE.
        threads: batches that run at the same time.
    """

    def __init__(
        self,
        run: Run,
        allowed_sizes: Sequence[int] = (1, 2, 4, 8, 16),
        wait: float = 0.005,
        max_batches: int = 100,
        threads: int = 2,
    ):
        self._run, self._allowed, self._wait, self._max_batches = run, tuple(allowed_sizes), wait, max_batches
        self._queues: dict[Key, deque[_Batch]] = {}
        self._changed = threading.Condition()
        self.merged = 0  # requests that shared their run with others
        for number in range(threads):
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True).start()

    def run(self, key: Key, inputs: Arrays) -> Arrays:
        """As the wrapped `Run`: waits until the batch that this request became part of was run."""
        if any(value.ndim == 0 for value in inputs.values()):
            invalid("Batching Run() input tensors must have at least one dimension")
        sizes = {len(value) for value in inputs.values()}
        if len(sizes) != 1:
            invalid("Batching Run() input tensors must have equal 0th-dimension size")
        size = sizes.pop()
        if size > self._allowed[-1]:
            invalid(f"Task size {size} is larger than maximum input batch size {self._allowed[-1]}")
        task = _Task(inputs, size)
        with self._changed:
            queue = self._queues.setdefault(key, deque())
            if not queue or queue[-1].size + size > self._allowed[-1]:
                if len(queue) >= self._max_batches:
                    raise StatusError(
                        "UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full"
                    )
                queue.append(_Batch())
            queue[-1].tasks.append(task)
            queue[-1].size += size
            self._changed.notify()
        task.done.wait()
        if task.error is not None:
            raise task.error
        assert task.outputs is not None
        return task.outputs

    def _work(self) -> None:
        while True:
            key, batch = self._take()
            try:
                self._process(key, batch)
            except StatusError as error:
                for task in batch.tasks:
                    task.error = error
            except Exception as error:  # whoever waits must be answered
                for task in batch.tasks:
                    task.error = StatusError("INTERNAL", repr(error))
            for task in batch.tasks:
                task.done.set()

    def _take(self) -> tuple[Key, _Batch]:
        """The batch that is ready and has waited longest, as soon as there is one."""
        with self._changed:
            while True:
                fronts = sorted(
                    ((queue[0].opened, key) for key, queue in self._queues.items() if queue), key=lambda pair: pair[0]
                )
                now = time.monotonic()
                for opened, key in fronts:
                    queue = self._queues[key]
                    if queue[0].size >= self._allowed[-1] or len(queue) > 1 or now >= opened + self._wait:
                        return key, queue.popleft()
                self._changed.wait(fronts[0][0] + self._wait - now if fronts else None)

    def _process(self, key: Key, batch: _Batch) -> None:
        padding = next(size for size in self._allowed if size >= batch.size) - batch.size if batch.size else 0
        merged = {alias: self._merge(alias, batch, padding) for alias in batch.tasks[0].inputs}
        outputs = self._run(key, merged)
        for value in outputs.values():
            if value.ndim == 0:
                raise StatusError("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
            if len(value) != batch.size + padding:
                raise StatusError(
                    "FAILED_PRECONDITION",
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    "input tensors",
                )
        start = 0
        for task in batch.tasks:
            task.outputs = {alias: value[start : start + task.size] for alias, value in outputs.items()}
            start += task.size
        with self._changed:
            self.merged += len(batch.tasks) if len(batch.tasks) > 1 else 0

    @staticmethod
    def _merge(alias: str, batch: _Batch, padding: int) -> np.ndarray:
        values = [task.inputs[alias] for task in batch.tasks]
        if any(value.shape[1:] != values[0].shape[1:] for value in values):
            raise StatusError(
                "FAILED_PRECONDITION",
                f"Tensors with name '{alias}' from different tasks have different shapes and padding is turned off."
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
                "have equal dimensions starting with the first dim.",
            )
        if len({value.dtype for value in values}) > 1:
            raise StatusError("INTERNAL", "Tensor concat operation failed: tensors of different types")
        return np.concatenate(values + [values[-1][:1]] * padding)
