"""Trains TCP: configuration -> strategy -> data -> model -> fit.

    python train.py                                      the embedded data set, on this machine
    python train.py --config configs/photos.yaml --set data.source=folder:DIR
    python train.py --config configs/church256.yaml --set data.batch_size=32 --run-dir runs/church

Run again with the same run directory to continue where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tcp_tf import allocator, onednn
from tcp_tf import config as configuration


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml", help="experiment (default: %(default)s)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run-dir", type=Path, help="where everything is written (default: runs/NAME of the config)")
    parser.add_argument("--dry-run", action="store_true", help="print configuration, parameter counts, memory; stop")
    parser.add_argument("--no-evaluation", action="store_true", help="skip the evaluation at the end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs one training. Returns the exit code: 0 finished or interrupted and saved, 2 what was asked cannot be done.

    130 after a second Ctrl-C, or one before training began: nothing was saved.
    """
    options = parse(arguments)
    try:
        config = configuration.load(options.config, options.overrides)
    except configuration.ConfigError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    directory = options.run_dir or Path("runs") / Path(options.config).stem

    logging.basicConfig(format="%(message)s")
    logging.getLogger("tcp_tf").setLevel(logging.INFO)  # what an index pass found, among others
    from tcp_tf import callbacks, training, workers  # TensorFlow only starts once the configuration is known to be good

    try:
        if options.dry_run:
            print(configuration.dump(config))
            print(training.summary(config))
            return 0
        training.train(config, directory)
        if not options.no_evaluation and not (config.multi_worker and workers.this_one().number):
            training.report(directory)
    except callbacks.Interrupted as signal:
        print(f"\n{signal}: saved in {directory}; the same command continues from there")
    except KeyboardInterrupt:
        print("\ntrain.py: stopped at once; checkpoints already written are whole", file=sys.stderr)
        return 130
    except (ValueError, OSError, callbacks.NonFiniteLoss, callbacks.CannotWrite, workers.WorkerLost) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    allocator.tune()
    onednn.prefer()
    sys.exit(main())
