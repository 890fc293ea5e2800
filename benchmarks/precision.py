"""Does a training in bfloat16 go as one in float32 does? The loss curves of both, over several seeds.

    python -m benchmarks.precision --json benchmarks/results/precision.json
    python -m benchmarks.precision --kimg 28 --start 16 --seeds 4 --bfloat16-seeds 4 --runs DIRECTORY --json FILE

Every training is `configs/quickstart.yaml`, shortened, with all of its terms. One after the other, each in a process of
its own; the command can be stopped and given again, and goes on where it was. `benchmarks.report` draws the curves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from benchmarks import measuring, study
from benchmarks.children import ROOT
from benchmarks.report import PRECISIONS
from benchmarks.speed import write
from tcp_tf import config as configuration
from tcp_tf.pairs import load_pairs


class Training(NamedTuple):
    """One of the trainings."""

    precision: str
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.precision}-{self.seed}"


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    base = str(study.BASE.relative_to(ROOT))
    parser.add_argument("--config", default=base, help="experiment to shorten (%(default)s)")
    parser.add_argument("--kimg", type=float, default=2.4, help="length of each training (%(default)s)")
    parser.add_argument("--start", type=float, default=0.8, help="kimg before the adversaries (%(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="trainings in float32 (%(default)s)")
    parser.add_argument("--bfloat16-seeds", type=int, default=2, help="and in bfloat16 (%(default)s)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="in all")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "precision", help="directory (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args(arguments)
    if options.seeds < 2 or options.bfloat16_seeds < 1:
        parser.error("at least two seeds in float32, whose spread is the measure, and one in bfloat16")
    if not 0 <= options.start < options.kimg:
        parser.error(f"--start: must be at least 0 and less than --kimg, got {options.start:g}")
    return options


def overrides(training: Training, options: argparse.Namespace) -> list[str]:
    """What a training changes in the configuration."""
    return [
        f"train.kimg={options.kimg:g}",
        f"train.tick_kimg={options.kimg / 24:g}",
        f"train.checkpoint_kimg={options.kimg / 4:g}",
        f"loss.gan_start_kimg={options.start:g}",
        f"loss.consistency_start_kimg={options.start:g}",
        *options.overrides,
        f"mixed_precision={training.precision}",
        f"seed={training.seed}",
    ]


def curve(directory: Path) -> dict[str, list[Optional[float]]]:
    """The losses of a run: {"kimg": [...], term: [...]}, one number per tick, None where a term was not computed."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    terms = sorted({term for line in lines for term in line if term.partition("/")[0] in ("g", "d", "dp")})
    return {term: [round_off(line[term]) if term in line else None for line in lines] for term in ("kimg", *terms)}


def round_off(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit code: 0, or 2 where a training failed, was interrupted or cannot be asked for."""
    options = parse(arguments)
    numbers = zip(PRECISIONS, (options.seeds, options.bfloat16_seeds))
    trainings = [Training(precision, seed) for precision, count in numbers for seed in range(count)]
    try:
        pairs = load_pairs(configuration.load(options.config, options.overrides), study.CURVE_PAIRS, "validation")
    except configuration.ConfigError as error:
        print(f"benchmarks.precision: {error}", file=sys.stderr)
        return 2
    runs: list[dict[str, Any]] = []
    for training in trainings:
        print(f"== {training.file_name}", flush=True)
        try:
            directory = options.runs.resolve() / training.file_name
            settings = overrides(training, options)
            study.train_to(options.kimg, Path(options.config).resolve(), directory, settings)
        except (study.NotEnded, KeyboardInterrupt) as stopped:
            print(f"benchmarks.precision: {stopped or 'interrupted'}; the same command goes on", file=sys.stderr)
            return 2
        measured = study.judge_curve(directory, pairs)
        runs.append(
            {
                "precision": training.precision,
                "seed": training.seed,
                "curve": curve(directory),
                "measures": {name: round_off(found["mean"]) for name, found in measured.items()},
            }
        )
    results = {
        "config": options.config,
        "overrides": overrides(Training("…", 0), options)[:-2],
        "start_kimg": options.start,
        "commit": study.commit(),
        "machine": measuring.machine(),
        "runs": runs,
    }
    write(options.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
