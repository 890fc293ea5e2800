"""How much memory a process holds, and whether that grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def memory(pid: int, what: str = "VmRSS") -> int:
    """VmRSS (now) or VmHWM (the most so far) of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(what))


def slope(samples: Sequence[tuple[float, int]], warm_up: float = 1 / 3) -> float:
    """Growth in MiB a minute of (seconds, bytes) after the first share of the time: Theil's median of all slopes.

    The median (H. Theil, 1950) lets a burst of requests that is over again not count as growth.
    """
    times, values = np.array(samples, np.float64).T
    late = times >= times[0] + warm_up * (times[-1] - times[0])
    times, values = times[late], values[late]
    first, second = np.triu_indices(len(times), 1)
    return float(np.median((values[second] - values[first]) / (times[second] - times[first]))) * 60 / 2**20
