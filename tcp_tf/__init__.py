"""Region-wise photorealistic image manipulation (TCP, arXiv 2108.08674) in TensorFlow.

    from tcp_tf import Editor, Region
    Editor.load("runs/quickstart").edit("photo.jpg", [Region("sky.png", "sunset.jpg")]).save("edited.png")

Importing the package alone is light: TensorFlow is loaded by the modules that need it, and here when one of the names
below is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {"Editor": "editor", "Region": "editor", "StyleLibrary": "styles"}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
