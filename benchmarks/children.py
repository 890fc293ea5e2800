"""One measurement in one process: what the parent asks for, how it starts the child, what comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from tcp_tf import onednn
from tcp_tf.allocator import SETTINGS

CEILING, PIPELINE = "ceiling", "data_pipeline"
ENCODE, DECODE, STYLE_MAP = "encode", "decode", "masked_blend/style_map"
BLENDS = (STYLE_MAP, "masked_blend/encoder_features", "masked_blend/generator_features")
INFERENCE = (ENCODE, DECODE, *BLENDS)
SERVED = "session/masked_blend"  # the SavedModel in a Session, as TensorFlow Serving runs it, with `blend.strategy`
STEP = "training_step"
TRAINING = ("discriminator_part", "generator_part", STEP)

# What makes TCP's objective the Swapping Autoencoder's own.
NO_CONSISTENCY = ("loss.g.code_consistency.content=0", "loss.g.code_consistency.style=0")
NO_ALIGNMENT = ("loss.g.content_alignment=0",)

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS, SIZES = "weights.npz", "sizes.json"  # what the PyTorch side is built from
MARK = "benchmark result: "


@dataclass(frozen=True)
class Request:
    """One case. `side` is `ours`, `agreement`, or a mode of PyTorch (`torch_cases.flags_of`)."""

    case: str
    config: str
    overrides: list[str] = field(default_factory=list)
    batch: int = 1
    regions: int = 1
    replicas: int = 1
    seconds: float = 10.0  # for the timed calls, at least three of them
    side: str = "ours"
    weights: Optional[str] = None  # directory of `agreement.write`, for the PyTorch side


class CaseError(RuntimeError):
    """A child process that did not bring back a result; the message is its last line, or how it ended."""


def run(request: Request, tuned: bool, environment: Optional[Mapping[str, str]] = None) -> dict[str, Any]:
    """Runs one case in a process of its own.

    Args:
        tuned: with the allocator's settings of `tcp_tf.allocator`; otherwise as the C library comes.
    Raises:
        CaseError: the child failed.
    """
    variables = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    variables.update(SETTINGS if tuned and sys.platform.startswith("linux") else {})
    variables.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if request.case in TRAINING:
        onednn.prefer(variables)  # as `train.py` does
    variables.update(environment or {})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.children", json.dumps(asdict(request))],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not answers:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines and done.returncode > 0 else f"ended with code {done.returncode}"
        raise CaseError(f"killed by signal {-done.returncode}" if done.returncode < 0 else reason)
    result: dict[str, Any] = json.loads(answers[-1][len(MARK) :])
    return result


def main() -> int:
    """The child's side: measures the case in the first argument and prints its result as one line of JSON."""
    request = Request(**json.loads(sys.argv[1]))
    if request.side == "ours":
        # TensorFlow and Keras import these where they can: 0.16 GiB that only those take who measure.
        for of_extra_bench in ("jax", "matplotlib"):
            sys.modules[of_extra_bench] = None  # type: ignore[assignment]
        from benchmarks import cases

        result = cases.run(request)
    elif request.side == "agreement":
        from benchmarks import agreement

        result = agreement.run(request)
    elif request.side == "program":
        from benchmarks import programs

        result = programs.write(request)
    else:
        from benchmarks import torch_cases

        result = torch_cases.run(request)
    print(MARK + json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
