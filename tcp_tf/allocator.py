"""The C library's allocator, set for large tensors that come and go.

With glibc's defaults every large activation is mapped anew, zeroed page by page, and unmapped again at each step; that
can cost more than the arithmetic. Kept memory and huge pages avoid it, and so does one arena for all threads: a
thread's own gives memory back whenever it runs empty, and many of them keep more than is needed. glibc reads these
settings when a process starts, so a command line tool replaces itself once with the same command and the settings in
its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def tune() -> None:
    """Restarts this Python program with the allocator's settings, unless it has them or has others on purpose.

    Call it first in a program's `__main__`. Does nothing outside Linux, or where any of the variables is set already.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS):
        return
    # With the interpreter's own options, as in `python -m ...`; sys.orig_argv is not there before Python 3.10.
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")[1:-1]
    os.execve(sys.executable, [sys.executable, *map(os.fsdecode, arguments)], {**os.environ, **SETTINGS})


def trim() -> None:
    """Gives memory that is kept and not used back to the system, where the C library is glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another library, or a system without this way in
        ctypes.CDLL(None).malloc_trim(0)
