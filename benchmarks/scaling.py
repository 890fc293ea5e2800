"""How the cost grows: with the resolution, the batch, the number of regions and the number of replicas.

    python -m benchmarks.scaling --json benchmarks/results/scaling.json
    python -m benchmarks.scaling --only regions --config configs/photos.yaml

Replicas are logical devices: on a CPU they share its cores, so the sweep shows what replication itself costs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from benchmarks import children
from benchmarks.children import BLENDS, CEILING, DECODE, ENCODE, STEP, STYLE_MAP, CaseError, Request
from benchmarks.speed import DEFAULT, duration, write
from tcp_tf import config as configuration

RESOLUTIONS = (64, 128, 256, 512)
BATCHES = (1, 2, 4, 8, 16, 32)
TRAINING_BATCHES = BATCHES[1:]  # neighbours swap
REGIONS = (1, 2, 4, 8, 16)
REPLICAS = (1, 2, 4)
SWEEPS = ("resolution", "batch", "regions", "replicas")


class Point(NamedTuple):
    """One measurement of a sweep: where it stands on the axis, and what is measured there."""

    axis: int
    request: Request


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=DEFAULT, help="experiment whose networks are measured (%(default)s)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS), metavar="SWEEP")
    parser.add_argument("--largest", type=int, help="leave out what lies beyond this on the axis")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timed calls per point, at least 3 (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    return parser.parse_args(arguments)


def points(sweep: str, options: argparse.Namespace) -> list[Point]:
    """Everything that a sweep measures, in the order in which it runs."""

    def request(case: str, *overrides: str, batch: int = 1, regions: int = 1, replicas: int = 1) -> Request:
        every = [*options.overrides, *overrides]
        return Request(case, options.config, every, batch, regions, replicas, options.seconds)

    found: list[Point] = []
    if sweep == "resolution":
        # The style head needs seven positions a side, so the smallest picture decides for all.
        config = configuration.load(options.config, options.overrides)
        halvings = min(config.model.downsamples, 3)
        for side in RESOLUTIONS:
            sizes = [f"data.resolution={side}", "data.load_size=null", f"model.downsamples={halvings}"]
            found += [Point(side, request(case, *sizes, batch=1)) for case in (ENCODE, DECODE, STYLE_MAP)]
            found.append(Point(side, request(STEP, *sizes, batch=2)))
    elif sweep == "batch":
        found += [Point(batch, request(case, batch=batch)) for case in (ENCODE, DECODE, STYLE_MAP) for batch in BATCHES]
        found += [Point(batch, request(STEP, batch=batch)) for batch in TRAINING_BATCHES]
    elif sweep == "regions":
        found += [Point(count, request(case, regions=count)) for case in BLENDS for count in REGIONS]
    else:
        batch = 2 * max(REPLICAS)
        found += [Point(count, request(STEP, batch=batch, replicas=count)) for count in REPLICAS]
    return [point for point in found if options.largest is None or point.axis <= options.largest]


def measure(options: argparse.Namespace, log: Any = print) -> dict[str, Any]:
    """Runs the sweeps; a point that fails (for lack of memory, mostly) has `error` instead of figures.

    Returns:
        {config, overrides, ceiling, sweeps: {sweep: [{axis, case, ...}]}}.
    Raises:
        CaseError: the ceiling cannot be measured, for instance because the configuration cannot be used.
    """
    ceiling = children.run(Request(CEILING, options.config, options.overrides, seconds=options.seconds), tuned=True)
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for sweep in options.only:
        sweeps[sweep] = []
        for axis, request in points(sweep, options):
            result: dict[str, Any] = {"axis": axis, "case": request.case}
            try:
                result.update(children.run(request, tuned=True))
                told = f"{duration(result['median_s'])}, {result['peak_bytes'] / 2**30:.2f} GiB"
            except CaseError as error:
                result["error"] = told = str(error)
            sweeps[sweep].append(result)
            log(f"{sweep} {axis:4} {request.case:34} {told}")
    return {"config": options.config, "overrides": options.overrides, "ceiling": ceiling, "sweeps": sweeps}


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit code: 0, 1 where a point failed, 2 where nothing could be measured."""
    options = parse(arguments)
    try:
        results = measure(options)
    except (CaseError, configuration.ConfigError) as error:
        print(f"benchmarks.scaling: {error}", file=sys.stderr)
        return 2
    write(options.json, results)
    return int(any("error" in point for sweep in results["sweeps"].values() for point in sweep))


if __name__ == "__main__":
    sys.exit(main())
