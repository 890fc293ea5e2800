"""Judges a trained model: one table and one JSON file of measures, each with its standard error.

    python -m tcp_tf.evaluate --run-dir RUN [--split test] [--examples N] [--json FILE]

The averaged weights answer fixed pairs and masks of held-out pictures (`pairs`); `measures` says what is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Optional

from tcp_tf import allocator, answers, inception, measures, metrics, run_dir
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config
from tcp_tf.pairs import Pairs, load_pairs
from tcp_tf.sources import SPLITS

HIGHER_IS_BETTER = ("psnr", "ssim")


def swap_report(
    autoencoder: AutoEncoder,
    config: Config,
    examples: int = 256,
    split: str = "test",
    pairs: Optional[Pairs] = None,
) -> dict[str, Any]:
    """The short judgement for the end of a training: reconstruction PSNR and, on `scenes`, swap PSNR.

    A swap's PSNR is to the true swap render(layout_A, look_B), over the pixels whose kind of region both pictures show;
    the trivial answers are scored on the same pairs and pixels. The headline, `mean`, is the mean of the pairs' PSNRs.

    Args:
        pairs: from `load_pairs`, to load them once for several models.
    Returns:
        {"split", "source", "resolution", "examples", "measures": {"swap/psnr": {"mean", "standard_error", "count",
        "pooled"}, ...}}.
    Raises:
        ValueError: the data cannot be used.
    """
    pairs = pairs or load_pairs(config, examples, split)
    reconstruction, swap = answers.reconstruct_and_swap(autoencoder, pairs)
    found = {"reconstruction/psnr": metrics.summarize_psnr(metrics.mse(reconstruction, pairs.images))}
    if pairs.truth is not None:
        found.update(measures.swap_psnr({"swap": swap, **answers.trivial_swaps(pairs)}, pairs.truth))
    return {**_what_is_judged(config, split, pairs), "measures": found}


def full_report(
    autoencoder: AutoEncoder,
    config: Config,
    examples: int = 256,
    split: str = "test",
    pairs: Optional[Pairs] = None,
    inception_weights: Optional[str] = None,
) -> dict[str, Any]:
    """Every measure that the data allow.

    Args:
        pairs: from `load_pairs`, to load them once for several models.
        inception_weights: for `inception.load`; None leaves FID and KID out.
    Returns:
        As `swap_report`, and "notes": lines about measures that could not be taken.
    Raises:
        ValueError: the data cannot be used.
    """
    pairs = pairs or load_pairs(config, examples, split)
    given = answers.answer(autoencoder, pairs)
    found = measures.all_measures(given, pairs)
    notes = []
    if inception_weights is not None:
        try:
            found.update(measures.set_measures(given, pairs, inception.load(inception_weights)))
        except inception.InceptionUnavailable as error:
            notes.append(f"FID and KID are left out: {error}")
    return {**_what_is_judged(config, split, pairs), "measures": found, "notes": notes}


def _what_is_judged(config: Config, split: str, pairs: Pairs) -> dict[str, Any]:
    source, side = " + ".join(config.data.all_sources), config.data.resolution
    return {"split": split, "source": source, "resolution": side, "examples": len(pairs)}


def table(report: dict[str, Any]) -> str:
    """A report as aligned plain text, with the pooled PSNR and the number of pictures where they matter."""
    lines = [f"{report['examples']} pairs of {report['source']}, {report['split']} split, {report['resolution']} px"]
    found = report["measures"]
    width = max(len(name) for name in found)
    lines.append(f"{'measure':{width}}  better  {'mean':>9}  {'+-':>7}  {'pooled':>8}")
    for name, measure in found.items():
        better = "higher" if name.rpartition("/")[2].startswith(HIGHER_IS_BETTER) else "lower"
        error = "" if measure["standard_error"] is None else f"{measure['standard_error']:.4f}"
        pooled = f"{measure['pooled']:.3f}" if "pooled" in measure else ""
        fewer = f"  ({measure['count']} pairs)" if measure["count"] != report["examples"] else ""
        lines.append(f"{name:{width}}  {better:6}  {measure['mean']:9.4f}  {error:>7}  {pooled:>8}{fewer}".rstrip())
    return "\n".join([*lines, *report.get("notes", [])])


def write_json(report: dict[str, Any], file: Path) -> None:
    """Writes a report to a file, making its directory where needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tcp_tf.evaluate", description="Judge a trained model on held-out pictures."
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="run directory of a training")
    parser.add_argument("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    parser.add_argument("--examples", type=int, help="pairs of pictures (default: the run's train.evaluate_examples)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    parser.add_argument(
        "--inception",
        default="keras",
        metavar="WEIGHTS",
        help="for FID and KID: `keras` to download Keras's InceptionV3 weights, a file that holds them, or `none`",
    )
    return parser.parse_args(arguments)


def main(arguments: Optional[list[str]] = None) -> int:
    """Judges one run. Returns the exit code: 0, or 2 where what was asked cannot be done."""
    options = parse(arguments)
    weights = None if options.inception == "none" else options.inception
    begun = time.monotonic()
    try:
        autoencoder, config = run_dir.load_autoencoder(options.run_dir)
        examples = config.train.evaluate_examples if options.examples is None else options.examples
        report = full_report(autoencoder, config, examples, options.split, inception_weights=weights)
    except ValueError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    report = {
        "run_dir": options.run_dir.resolve().name,
        "checkpoint": Path(run_dir.latest_checkpoint(options.run_dir) or "").name,
        **report,
    }
    print(table(report))
    print(f"{time.monotonic() - begun:.0f} s")
    if options.json:
        write_json(report, options.json)
    return 0


if __name__ == "__main__":
    allocator.tune()
    sys.exit(main())
