"""Makes a small, shippable run directory of a finished training: averaged weights, configuration, card.

    python -m tcp_tf.publish --run-dir runs/NAME --output pretrained/NAME --note "how it was made"

What comes out has a run directory's shape and is taken wherever one is: by the editor, the evaluation, the export. The
card holds the whole evaluation, so that anyone can measure it again. No training goes on from it, but a new one can
begin with its networks (`train.start_from`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Optional

from tcp_tf import __version__, allocator, evaluate, run_dir
from tcp_tf.config import Config


def training_hours(directory: Path) -> tuple[float, float]:
    """(kimg, hours) of a training by its metric lines; hours count the training alone."""
    kimg, hours = 0.0, 0.0
    for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        hours += 1000.0 * (entry["kimg"] - kimg) / entry["images_per_second"] / 3600.0
        kimg = entry["kimg"]
    return kimg, hours


def card(name: str, config: Config, report: dict[str, Any], kimg: float, hours: float, note: str) -> str:
    """The model card in Markdown; `report` is from `evaluate.full_report`."""
    data = ", ".join(config.data.all_sources)
    return f"""# {name}

A tcp_tf {__version__} model (TCP, arXiv 2108.08674), trained on {data} at {config.data.resolution} px. {note}

| | |
|---|---|
| trained for | {kimg:g} kimg, {hours:.1f} hours |
| seed | {config.seed} |
| blending | `{config.blend.strategy}` |
| weights | averaged encoder and generator, float32, a TensorFlow checkpoint |

The complete configuration is in `config.yaml`. `python -m tcp_tf.evaluate --run-dir {name} --inception none` says:

```
{evaluate.table(report)}
```

It has seen only the data named above. Pictures made by it are not evidence of anything.
"""


def publish(directory: Path, output: Path, note: str) -> None:
    """Writes `output`, whole or not at all.

    Raises:
        ValueError: `output` exists, or `directory` is not a run directory with a checkpoint and metrics.
    """
    if output.exists():
        raise ValueError(f"{output}: exists already")
    if not (directory / "metrics.jsonl").is_file():
        raise ValueError(f"{directory}: has no metrics.jsonl, so nobody knows how long it was trained")
    autoencoder, config = run_dir.load_autoencoder(directory)
    report = evaluate.full_report(autoencoder, config, config.train.evaluate_examples)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    try:
        run_dir.write_config(temporary, config)
        run_dir.write_averages(temporary, autoencoder)
        text = card(str(output), config, report, *training_hours(directory), note)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        evaluate.write_json(report, temporary / "evaluation.json")
        temporary.chmod(0o755)
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def main(arguments: Optional[list[str]] = None) -> int:
    """Publishes one run. Returns the exit code: 0, or 2 where what was asked cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m tcp_tf.publish", description="Make a shippable model of a run.")
    parser.add_argument("--run-dir", type=Path, required=True, help="run directory of a training")
    parser.add_argument("--output", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("--note", default="", help="a sentence for the card, such as the command that made the run")
    options = parser.parse_args(arguments)
    try:
        publish(options.run_dir, options.output, options.note)
    except ValueError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    allocator.tune()
    sys.exit(main())
