"""How fast everything of ours is on this machine, and which share of what the machine can do that is.

    python -m benchmarks.speed                                            the default 256 px networks, batches 1, 4, 8
    python -m benchmarks.speed --config configs/quickstart.yaml --only training_step --batch 8
    python -m benchmarks.speed --set mixed_precision=mixed_bfloat16 --json benchmarks/results/speed_bfloat16.json

Every case runs in a process of its own with the allocator's settings of `tcp_tf.allocator`, as `train.py` and the
command line have them; `--plain-allocator` leaves them out. Training cases need an even batch and leave odd ones out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from benchmarks import children
from benchmarks.children import CEILING, INFERENCE, PIPELINE, SERVED, TRAINING, CaseError, Request

CASES = (*INFERENCE, SERVED, *TRAINING, PIPELINE)
PIPELINE_SIDES = (256, 512)
DEFAULT = "configs/church256.yaml"
COLUMNS = ("case", "batch", "median", "spread", "images/s", "GFLOP", "GFLOP/s", "of conv.", "of matmul", "memory")


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=DEFAULT, help="experiment whose networks are measured (%(default)s)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8], help="pictures per call (1 4 8)")
    parser.add_argument("--only", nargs="+", metavar="CASE", help=f"some of: {', '.join(CASES)}; a prefix is enough")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timed calls per case, at least 3 (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--plain-allocator", action="store_true", help="the C library's allocator as it comes")
    options = parser.parse_args(arguments)
    if min(options.batch) < 1:
        parser.error(f"--batch: must be 1 or more, got {min(options.batch)}")
    for name in options.only or ():
        if not any(case.startswith(name) for case in CASES):
            parser.error(f"--only: no case begins with {name!r}; there are {', '.join(CASES)}")
    return options


def requests(options: argparse.Namespace) -> list[Request]:
    """The cases that the command line asks for, in the order in which they run; the ceiling is not among them."""

    def wanted(case: str) -> bool:
        return not options.only or any(case.startswith(name) for name in options.only)

    def request(case: str, batch: int, *overrides: str) -> Request:
        every = [*options.overrides, *overrides]
        return Request(case, options.config, every, batch=batch, seconds=options.seconds)

    chosen = [request(case, batch) for case in (*INFERENCE, SERVED) if wanted(case) for batch in options.batch]
    chosen += [request(case, batch) for case in TRAINING if wanted(case) for batch in options.batch if batch % 2 == 0]
    if wanted(PIPELINE):
        # As for churches: the short side to size, then a crop. The networks are not built.
        fixed = ["data.preprocess=short_side_and_crop", "data.load_size=null", "data.cache=none"]
        chosen += [request(PIPELINE, 16, *fixed, f"data.resolution={side}") for side in PIPELINE_SIDES]
    return chosen


def label(request: Request) -> str:
    """The case's name in tables: the pipeline's has its picture size in it."""
    if request.case != PIPELINE:
        return request.case
    return f"{PIPELINE}/{request.overrides[-1].partition('=')[2]}px"


def measure(options: argparse.Namespace, log: Any = print) -> dict[str, Any]:
    """Runs all cases; a case that fails has `error` instead of figures.

    Returns:
        {config, overrides, allocator, ceiling: {...}, results: [{case, batch, ...}]}.
    Raises:
        CaseError: the ceiling cannot be measured, for instance because the configuration cannot be used.
    """
    tuned = not options.plain_allocator
    ceiling = children.run(Request(CEILING, options.config, options.overrides, seconds=options.seconds), tuned)
    where = ", ".join(ceiling["gpus"]) or f"{ceiling['cpu']}, {ceiling['cores']} cores"
    log(f"{where}; TensorFlow {ceiling['tensorflow']}; {options.config} {' '.join(options.overrides)}")
    log(
        f"ceiling, {ceiling['dtype']}: matrix product {ceiling['matmul'] / 1e9:,.0f} GFLOP/s, "
        f"convolution {ceiling['convolution'] / 1e9:,.0f} GFLOP/s"
    )
    log(line(COLUMNS))
    results = []
    for request in requests(options):
        result: dict[str, Any] = {"case": label(request), "batch": request.batch}
        try:
            result.update(children.run(request, tuned))
        except CaseError as error:
            result["error"] = str(error)
        results.append(result)
        log(line(cells(result, ceiling)))
    return {
        "config": options.config,
        "overrides": options.overrides,
        "allocator": "plain" if options.plain_allocator else "tuned",
        "ceiling": ceiling,
        "results": results,
    }


def duration(seconds: float) -> str:
    """At three digits: 12.3 ms, 1.23 s."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def giga(value: float) -> str:
    """Billions, at three digits or whole: 0.0123, 12.3, 4,392."""
    return f"{value / 1e9:,.0f}" if value >= 1e11 else f"{value / 1e9:.3g}"


def cells(result: dict[str, Any], ceiling: dict[str, Any]) -> list[str]:
    """One result as the texts of a table's row, in the order of `COLUMNS`."""
    row = [result["case"], str(result["batch"])]
    if "error" in result:
        return [*row, f"failed: {result['error']}"]
    median = result["median_s"]
    spread = f"{result['spread']:.0%}" if "spread" in result else ""
    rate = result["images"] / median
    row += [duration(median), spread, f"{rate:.3g}" if rate < 999.5 else f"{rate:,.0f}"]
    if "flops" in result:
        speed = result["flops"] / median
        row += [giga(result["flops"]), giga(speed)]
        row += [f"{speed / ceiling[name]:.0%}" for name in ("convolution", "matmul")]
    else:
        row += [f"{result['images_per_cpu_second']:.0f} images/s per core", "", "", ""]
    return [*row, f"{result['peak_bytes'] / 2**30:.2f} GiB"]


def line(row: Sequence[str]) -> str:
    """A row of the table on the terminal."""
    first, *others = row
    return f"{first:33}" + "".join(f" {cell:>10}" for cell in others)


def write(file: Optional[Path], results: dict[str, Any]) -> None:
    """The results as JSON, if a file was asked for."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit code: 0, 1 where a case failed, 2 where nothing could be measured."""
    options = parse(arguments)
    try:
        results = measure(options)
    except CaseError as error:
        print(f"benchmarks.speed: {error}", file=sys.stderr)
        return 2
    write(options.json, results)
    return int(any("error" in result for result in results["results"]))


if __name__ == "__main__":
    sys.exit(main())
