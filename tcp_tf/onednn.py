"""Whose kernels TensorFlow takes on a CPU, its own or oneDNN's: said before TensorFlow is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping


def prefer(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has TensorFlow take oneDNN's kernels, unless the environment says otherwise. For programs that train.

    By itself it does so where the CPU has AVX512-VNNI or newer. Where it has AVX2 alone, TensorFlow's own gradients of
    small convolutions are so slow that a step of `configs/quickstart.yaml` takes 1.5 times as long with them; wide
    networks train as fast either way, and single pictures are encoded faster without oneDNN. Call it before anything
    imports TensorFlow, or give the environment of a process that is to be started.
    """
    environment.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
