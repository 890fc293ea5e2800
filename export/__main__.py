"""Exports a trained model for serving.

    python -m export --run-dir runs/quickstart --output models/tcp

writes `models/tcp/1/`, the next time `models/tcp/2/`; a server that watches `models/tcp` picks each up by itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Optional

from tcp_tf.config import PRECISIONS

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # nothing here needs a GPU, and one may be busy
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", required=True, help="what train.py wrote, or a directory of the same shape")
    parser.add_argument("--output", required=True, help="the model's base directory; versions are its subdirectories")
    parser.add_argument("--version", type=int, help="default: one more than the highest there")
    parser.add_argument(
        "--max-pixels", type=int, help="largest height times width that a picture may have (default: 2097152)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="the networks' arithmetic; mixed_bfloat16 only where its pictures stay near enough (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: Optional[list[str]] = None) -> int:
    """Exports. Returns the exit code: 0 written, 2 what was asked cannot be done."""
    options = parse(arguments)

    from export import savedmodel, signatures  # TensorFlow only starts once the command line is known to be good

    max_pixels = signatures.MAX_PIXELS if options.max_pixels is None else options.max_pixels
    try:
        directory = savedmodel.export(options.run_dir, options.output, options.version, max_pixels, options.precision)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
