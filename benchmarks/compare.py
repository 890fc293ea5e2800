"""Ours beside the plain PyTorch implementation: same networks, same weights, same machine, in turns.

    python -m benchmarks.compare --json benchmarks/results/compare.json
    python -m benchmarks.compare --modes eager+channels_last compiled+channels_last --cases decode --batch 1
    python -m benchmarks.compare --set mixed_precision=mixed_bfloat16       ours in bfloat16, PyTorch in float32

Needs the extra `bench` (PyTorch). First both sides get the same weights and their outputs are compared (relative error
1e-5), then every round measures all sides of a case one after the other, each in a process of its own. Training is the
Swapping Autoencoder's objective on both sides: no code consistency, no content alignment, R1 every 16 steps.

Allocator: `tuned` gives both sides the settings of `tcp_tf.allocator`, `plain` neither; `as-found` is what a user
meets: ours with the settings that our programs make by themselves, PyTorch without.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from benchmarks import children
from benchmarks.children import (
    CEILING,
    DECODE,
    ENCODE,
    NO_ALIGNMENT,
    NO_CONSISTENCY,
    STYLE_MAP,
    TRAINING,
    CaseError,
    Request,
)
from benchmarks.speed import DEFAULT, duration, write

INFERENCE = (ENCODE, DECODE, STYLE_MAP)
CASES = (*INFERENCE, *TRAINING)
FAIR = (*NO_CONSISTENCY, *NO_ALIGNMENT)


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=DEFAULT, help="experiment whose networks are measured (%(default)s)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="ours only")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="pictures per call (1 8)")
    parser.add_argument("--training-batch", type=int, default=4, help="pictures per training step (%(default)s)")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], help="of PyTorch (eager compiled)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all sides take turns (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timed calls per side and round (%(default)s)")
    parser.add_argument("--allocator", choices=("tuned", "plain", "as-found"), default="tuned")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args(arguments)
    if min([*options.batch, options.rounds, options.training_batch]) < 1:
        parser.error("--batch, --training-batch and --rounds must be 1 or more")
    if options.training_batch % 2:
        parser.error(f"--training-batch: must be even, because neighbours swap, got {options.training_batch}")
    return options


def compare(options: argparse.Namespace, log: Any = print) -> dict[str, Any]:
    """Runs everything; a side that fails once in a case has `error` there.

    Returns:
        {config, overrides, allocator, ceiling, agreement, results: [{case, batch, sides: {side: result}}]}, where a
        result has the medians over the rounds and `medians_s`, one per round.
    Raises:
        CaseError: the outputs differ, PyTorch is not there, or the ceiling cannot be measured.
    """
    tuned = {"ours": options.allocator != "plain"}
    tuned.update({mode: options.allocator == "tuned" for mode in options.modes})
    with tempfile.TemporaryDirectory() as weights:
        agreement = children.run(
            Request("agreement", options.config, [], side="agreement", weights=weights), tuned["ours"]
        )
        log("outputs agree, relative errors: " + ", ".join(f"{name} {error:.0e}" for name, error in agreement.items()))
        ceiling = children.run(Request(CEILING, options.config, options.overrides, seconds=options.seconds), True)
        results = []
        for case in options.cases:
            for batch in options.batch if case in INFERENCE else [options.training_batch]:
                fixed = [] if case in INFERENCE else list(FAIR)
                rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in tuned}
                failed: dict[str, str] = {}
                for _ in range(options.rounds):
                    for side in tuned:
                        own = options.overrides if side == "ours" else []
                        if side in failed:
                            continue
                        request = Request(
                            case,
                            options.config,
                            [*own, *fixed],
                            batch=batch,
                            seconds=options.seconds,
                            side=side,
                            weights=weights,
                        )
                        try:
                            rounds[side].append(children.run(request, tuned[side]))
                        except CaseError as error:
                            failed[side] = str(error)
                sides = {
                    side: {"error": failed[side]} if side in failed else over_rounds(rounds[side]) for side in tuned
                }
                results.append({"case": case, "batch": batch, "sides": sides})
                log(line(results[-1]))
    return {
        "config": options.config,
        "overrides": options.overrides,
        "allocator": options.allocator,
        "ceiling": ceiling,
        "agreement": agreement,
        "results": results,
    }


def over_rounds(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of several: medians of the medians, the spread of the rounds, the largest memory."""
    medians = [result["median_s"] for result in rounds]
    median = statistics.median(medians)
    return {
        **rounds[0],
        "median_s": median,
        "medians_s": medians,
        "spread": (max(medians) - min(medians)) / median,
        "peak_bytes": max(result["peak_bytes"] for result in rounds),
    }


def line(result: dict[str, Any]) -> str:
    """One case on the terminal: every side's median and memory, and how many times as long as ours it takes."""
    ours = result["sides"]["ours"]
    parts = []
    for side, measured in result["sides"].items():
        if "error" in measured:
            parts.append(f"{side} failed: {measured['error']}")
            continue
        text = f"{side} {duration(measured['median_s'])} {measured['peak_bytes'] / 2**30:.1f} GiB"
        if side != "ours" and "error" not in ours:
            text += f" ({measured['median_s'] / ours['median_s']:.2f}x)"
        if "phases" in measured:
            phases = [f"{name} {duration(phase['median_s'])}" for name, phase in measured["phases"].items()]
            text += f" [{', '.join(phases)}]"
        parts.append(text)
    return f"{result['case']}, batch {result['batch']}: " + "; ".join(parts)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit code: 0, 1 where a side failed, 2 where nothing could be compared."""
    options = parse(arguments)
    try:
        results = compare(options)
    except CaseError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    write(options.json, results)
    return int(any("error" in side for result in results["results"] for side in result["sides"].values()))


if __name__ == "__main__":
    sys.exit(main())
