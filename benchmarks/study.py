"""TCP against the Swapping Autoencoder: the same networks, pictures and kimg, with and without TCP's two losses.

    python -m benchmarks.study                    trains and judges what has no record yet, one after the other
    python -m benchmarks.study --only sa tcp/style_map --seeds 0
    python -m benchmarks.study --list

Every training is `configs/quickstart.yaml`, shortened, with TCP's losses in every fourth step and a few weights set to
zero. It stops every `--every` kimg to be judged on held-out pairs of the validation split, and goes on from its
checkpoint; at the end it is judged on the test split.
A record in `benchmarks/results/study/` says everything that `benchmarks.study_report` prints. The command can be
stopped and given again at any time: trainings go on where they were, and what has a record is left alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from benchmarks import measuring
from benchmarks.children import NO_ALIGNMENT, NO_CONSISTENCY, ROOT
from tcp_tf import answers, checkpoints, evaluate, measures, metrics, publish, run_dir
from tcp_tf import config as configuration
from tcp_tf.blending import STRATEGIES
from tcp_tf.pairs import Pairs, load_pairs

BASE = ROOT / "configs" / "quickstart.yaml"
RECORDS, RUNS = ROOT / "benchmarks" / "results" / "study", ROOT / "runs" / "study"
PHOTOGRAPHS = RECORDS.parent / "photographs"  # records of the same with `benchmarks.photographs`
OWN_COLOURS = RECORDS.parent / "own_colours"  # and of `--set augment.content_colours=0`
KIMG, EVERY = 16.0, 4.0
# The study's trainings are shorter than the quickstart, and so is their part without adversaries. The losses that are
# compared count in every fourth step, not in every sixteenth as there.
RECIPE = ("loss.gan_start_kimg=8", "loss.consistency_start_kimg=9", "loss.consistency_every=4")
MAIN_PAIR = ("sa", "tcp/style_map")
SEEDS = (0, 1, 2)  # of the main pair; the others have the first alone
CURVE_PAIRS, FINAL_PAIRS = 128, 256

# Without content alignment nothing is blended in training: one training answers for every strategy.
OBJECTIVES = {"sa": (*NO_CONSISTENCY, *NO_ALIGNMENT), "cc": NO_ALIGNMENT, "ca": NO_CONSISTENCY, "tcp": ()}


class Training(NamedTuple):
    """One training of the study: `sa` or `tcp/style_map` and so on, and the seed."""

    name: str
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('/', '-')}-{self.seed}"

    @property
    def strategies(self) -> tuple[str, ...]:
        """Blending strategies with which it is judged."""
        _, _, strategy = self.name.partition("/")
        return (strategy,) if strategy else STRATEGIES

    def overrides(self) -> list[str]:
        """What it changes in `configs/quickstart.yaml`."""
        objective, _, strategy = self.name.partition("/")
        blend = [f"blend.strategy={strategy}"] if strategy else []
        return [*RECIPE, *OBJECTIVES[objective], *blend, f"seed={self.seed}"]


class NotEnded(RuntimeError):
    """A training that failed or was stopped on its way."""


def trainings() -> list[Training]:
    """The whole study, the main pair first."""
    names = ["sa", "cc", *(f"{objective}/{strategy}" for objective in ("ca", "tcp") for strategy in STRATEGIES)]
    others = [name for name in names if name not in MAIN_PAIR]
    return [Training(name, seed) for seed in SEEDS for name in MAIN_PAIR] + [
        Training(name, SEEDS[0]) for name in others
    ]


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({training.name for training in trainings()})
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, help="some of the main pair's (0 1 2)")
    parser.add_argument("--kimg", type=float, default=KIMG, help="length of each training (%(default)g)")
    parser.add_argument("--every", type=float, default=EVERY, help="kimg between judgements (%(default)g)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="in all")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where the trainings are (%(default)s)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where the records go (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print what there is to do, and stop")
    options = parser.parse_args(arguments)
    if not 0 < options.every <= options.kimg:
        parser.error(f"--every: must be above 0 and at most --kimg, got {options.every:g}")
    return options


def chosen(options: argparse.Namespace) -> list[Training]:
    """The trainings that the command line asks for."""
    return [
        training
        for training in trainings()
        if (not options.only or training.name in options.only) and (not options.seeds or training.seed in options.seeds)
    ]


def stops(kimg: float, every: float) -> list[float]:
    """Where a training is judged, in kimg; the last is its end."""
    inner = [every * number for number in range(1, int(kimg / every) + 1) if every * number < kimg]
    return [*inner, kimg]


def train(training: Training, options: argparse.Namespace, directory: Path, kimg: float) -> None:
    """Trains to `kimg` in a run directory; see `train_to`."""
    settings = [*training.overrides(), *options.overrides, f"train.kimg={kimg:g}", "train.checkpoint_kimg=1"]
    train_to(kimg, BASE, directory, settings)


def train_to(kimg: float, base: Path, directory: Path, settings: Sequence[str]) -> None:
    """Trains `base` with these settings to `kimg`, or what is left of it, in a process of its own.

    Raises:
        NotEnded: the training failed or was stopped; it has said why.
    """
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(base), "--run-dir", str(directory)]
    done = subprocess.run([*command, "--no-evaluation", *arguments], cwd=ROOT)
    config = run_dir.read_config(directory) if done.returncode == 0 else None
    steps = checkpoints.number_of(run_dir.latest_checkpoint(directory) or "ckpt-0")
    if config is None or steps < round(1000 * kimg / config.data.batch_size):
        raise NotEnded(f"{directory.name} has not come to {kimg:g} kimg")


def judge_curve(directory: Path, pairs: Pairs) -> dict[str, Any]:
    """Measures for the curve: of swaps against the true ones where those are known."""
    autoencoder, _ = run_dir.load_autoencoder(directory)
    reconstruction, swap = answers.reconstruct_and_swap(autoencoder, pairs)
    found = {"reconstruction/psnr": metrics.summarize_psnr(metrics.mse(reconstruction, pairs.images))}
    if pairs.truth is not None:
        found.update(measures.swap_psnr({"swap": swap}, pairs.truth))
        found.update(measures.layout_and_look_measures({"swap": swap}, pairs.truth))
    return found


def judge(directory: Path, strategies: Sequence[str], pairs: Pairs) -> dict[str, Any]:
    """The full report on the test split for each blending strategy."""
    autoencoder, config = run_dir.load_autoencoder(directory)
    reports = {}
    for strategy in strategies:
        autoencoder.strategy = strategy
        reports[strategy] = evaluate.full_report(autoencoder, config, pairs=pairs)
    return reports


def commit() -> str:
    """The source's commit, with + where files differ from it; empty outside a repository."""
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=7", "--dirty=+"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    return done.stdout.strip()


def run(training: Training, options: argparse.Namespace, pairs: dict[str, Pairs]) -> dict[str, Any]:
    """Trains and judges; returns the record.

    Args:
        pairs: "validation" and "test", from `pairs.load_pairs`.
    """
    notes = options.runs / f"{training.file_name}.curve.json"  # what was judged before an interruption
    curve: list[dict[str, Any]] = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else []
    directory = options.runs / training.file_name
    for kimg in stops(options.kimg, options.every):
        if any(point["kimg"] == kimg for point in curve):
            continue
        train(training, options, directory, kimg)
        curve.append({"kimg": kimg, "measures": judge_curve(directory, pairs["validation"])})
        notes.write_text(json.dumps(curve), encoding="utf-8")
    trained, hours = publish.training_hours(directory)
    return {
        "name": training.name,
        "seed": training.seed,
        "kimg": trained,
        "hours": hours,
        "commit": commit(),
        "machine": measuring.machine(),
        "overrides": [*training.overrides(), *options.overrides],
        "curve": curve,
        "reports": judge(directory, training.strategies, pairs["test"]),
    }


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit code: 0, or 2 where a training failed or was interrupted."""
    options = parse(arguments)
    records = {training: options.records / f"{training.file_name}.json" for training in chosen(options)}
    if options.list:
        for training, file in records.items():
            print(f"{training.file_name:28} {'done' if file.is_file() else 'to do'}")
        return 0
    remaining = [training for training, file in records.items() if not file.is_file()]
    if not remaining:
        print("benchmarks.study: every training that was asked for has a record")
        return 0
    config = configuration.load(BASE, options.overrides)
    pairs = {
        "validation": load_pairs(config, CURVE_PAIRS, "validation"),
        "test": load_pairs(config, FINAL_PAIRS, "test"),
    }
    for number, training in enumerate(remaining, 1):
        print(f"== {training.file_name}, {number} of {len(remaining)}", flush=True)
        try:
            record = run(training, options, pairs)
        except (NotEnded, KeyboardInterrupt) as stopped:
            print(f"benchmarks.study: {stopped or 'interrupted'}; the same command goes on from there", file=sys.stderr)
            return 2
        temporary = records[training].with_suffix(".part")
        evaluate.write_json(record, temporary)
        temporary.replace(records[training])
    return 0


if __name__ == "__main__":
    sys.exit(main())
