"""Clocks, memory, the machine's name and masks: what both sides of a comparison share. No TensorFlow, no PyTorch."""

from __future__ import annotations

import gc
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

MIN_REPEATS, MAX_REPEATS = 3, 200


def measure(call: Callable[[], Any], seconds: float, warm_up: int = 1) -> list[float]:
    """Wall time of each call in seconds: repeated for about `seconds`, at least 3 and at most 200 times.

    `call` must return only when the work is done. The calls of the warm-up are not timed.
    """
    for _ in range(warm_up):
        call()
    gc.collect()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < MIN_REPEATS or (time.perf_counter() < begun + seconds and len(times) < MAX_REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def summary(times: Sequence[float]) -> dict[str, Any]:
    """Median and spread of wall times: {"median_s", "spread", "repeats"}.

    The spread is the distance of the quartiles (of the extremes, where there are fewer than four) over the median.
    """
    median = statistics.median(times)
    if len(times) < 4:
        low, high = min(times), max(times)
    else:
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median_s": median, "spread": (high - low) / median, "repeats": len(times)}


def weighted(parts: Sequence[tuple[float, float]]) -> float:
    """Mean of (share, value) pairs whose shares sum to one."""
    assert math.isclose(sum(share for share, _ in parts), 1.0)
    return sum(share * value for share, value in parts)


def amortised(phases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A step of the phases' medians by their share of the steps, with the spread and repeats of the commonest one.

    Args:
        phases: name -> {"share", ...} and a `summary`; the shares sum to one.
    Returns:
        {"median_s", "spread", "repeats", "phases"}.
    """
    frequent = max(phases.values(), key=lambda phase: phase["share"])
    return {
        "median_s": weighted([(phase["share"], phase["median_s"]) for phase in phases.values()]),
        "spread": frequent["spread"],
        "repeats": frequent["repeats"],
        "phases": phases,
    }


def stripes(batch: int, regions: int, side: int) -> np.ndarray:
    """Masks: one upright stripe per region, half of the picture in all, `[N, R, side, side, 1]`."""
    edges = np.linspace(0, side // 2, regions + 1).astype(int)
    masks = np.zeros([batch, regions, side, side, 1], np.float32)
    for region in range(regions):
        masks[:, region, :, edges[region] : edges[region + 1]] = 1.0
    return masks


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        # ru_maxrss would be the parent's, where a large process started this one.
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """The CPU's name and how many cores there are."""
    count = cores()
    return f"{cpu_name()}, {count} core{'' if count == 1 else 's'}"


def cpu_name() -> str:
    """The CPU's model as its maker names it, with family and model: the name can mean several generations."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        return f"{told['model name']} (family {told['cpu family']}, model {told['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
