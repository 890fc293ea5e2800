"""Edits or encodes pictures by the million with an exported model, on Apache Beam.

    python -m export.pipeline edit --model models/tcp --input photos/ --style look.jpg --mask masks/ --output edited/
    python -m export.pipeline encode --model models/tcp --input 'data/*.tfrecord' --output codes/ --runner=FlinkRunner

--input is a folder, a manifest (.csv or .jsonl with image, style, mask, strength) or TFRecord files. All other flags go
to Beam; without --runner the pipeline runs in this process. Pictures that cannot be edited or encoded become dead
letters with the reason. Killed and started again with the same command, it does only what is not finished.

A shard is read, computed and written by one worker in one go, without the results of all shards meeting anywhere. So
a shard is finished as soon as its own pictures are, and memory holds one batch. That is why the writer takes
what the model's step gives it directly, where Beam's own sinks would shuffle first.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional, Union

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

try:
    import apache_beam as beam
    import tensorflow as tf
    from apache_beam.ml.inference.base import PredictionResult, RunInference
    from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerTensor
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise ImportError(f"the pipeline needs the extra `pipeline` (pip install -e '.[pipeline]'): {error}") from error

from export import pipeline_plan as plan
from export import pipeline_records as records
from export import pipeline_shards as shards
from export.pipeline_plan import EDIT, ENCODE
from export.pipeline_records import End, Record

IN_THIS_PROCESS = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
BATCH_SIZE = 8  # pictures that are in memory at the same time
SIGNATURES = {EDIT: "masked_blend_bytes", ENCODE: "encode_bytes"}

Answer = Union[dict[str, shards.Value], str]  # a result, or the reason why there is none


class SavedModelHandler(TFModelHandlerTensor):
    """Beam's TensorFlow handler for a SavedModel's signature: batches, the model shared by a worker's threads, metrics.

    Only the loading is ours: Beam asks Keras, and Keras 3 does not load SavedModels.

    Args:
        model: directory of the SavedModel.
        command: "edit" or "encode".
        batch_size: pictures per run of the model.
    """

    def __init__(self, model: str, command: str, batch_size: int):
        infer = {EDIT: _edit, ENCODE: _encode}[command]
        super().__init__(model, inference_fn=infer, min_batch_size=batch_size, max_batch_size=batch_size)
        self.model = model

    def load_model(self) -> Any:
        return tf.saved_model.load(self.model)

    def get_num_bytes(self, batch: Sequence[Union[Record, End]]) -> int:
        return sum(len(each.image) for each in batch if isinstance(each, Record))


def _edit(model: Any, batch: Sequence[Any], arguments: dict[str, Any], model_id: Any = None) -> list[PredictionResult]:
    def run(good: list[Record]) -> list[Answer]:
        answers = model.signatures[SIGNATURES[EDIT]](
            image_bytes=tf.constant([each.image for each in good]),
            style_image_bytes=tf.constant([each.style for each in good]),
            mask_bytes=tf.constant([each.mask for each in good]),
            strength=tf.constant([each.strength for each in good], tf.float32),
        )
        return [
            error.decode() if error else {"image": image}
            for image, error in zip(answers["image_bytes"].numpy(), answers["error"].numpy())
        ]

    return _answered(batch, run)


def _encode(
    model: Any, batch: Sequence[Any], arguments: dict[str, Any], model_id: Any = None
) -> list[PredictionResult]:
    def run(good: list[Record]) -> list[Answer]:
        answers = model.signatures[SIGNATURES[ENCODE]](image_bytes=tf.constant([each.image for each in good]))
        columns = (answers[name].numpy() for name in ("content", "style", "error"))
        return [
            error.decode() if error else {"content": content, "style": style} for content, style, error in zip(*columns)
        ]

    return _answered(batch, run)


def _answered(batch: Sequence[Union[Record, End]], run: Any) -> list[PredictionResult]:
    """Runs the model on what is whole. Everything gets its answer, in order; an `End` gets an empty one."""
    good = [each for each in batch if isinstance(each, Record) and not each.problem]
    answers = iter(_one_by_one_if_needed(good, run))
    return [PredictionResult(each, "" if isinstance(each, End) else each.problem or next(answers)) for each in batch]


def _one_by_one_if_needed(good: list[Record], run: Any) -> list[Answer]:
    """The model answers broken files by itself; an exception is, for example, one picture too large for the memory."""
    if not good:
        return []
    try:
        return run(good)
    except tf.errors.OpError as error:
        if len(good) == 1:
            return [f"{type(error).__name__}: {error.message}"]
        return [answer for each in good for answer in _one_by_one_if_needed([each], run)]


class ReadShard(beam.DoFn):
    """The name of a shard -> its records, then an `End`."""

    def __init__(self, output: str):
        self.output = output

    def process(self, shard: str) -> Iterator[Union[Record, End]]:
        number = 0
        for record in records.read(self.output, shard):
            yield record
            number += 1
        yield End(shard, number)


class WriteShard(beam.DoFn):
    """Answers of whole shards -> the names of those that are finished.

    All answers of a shard must come in one bundle. Runners fuse steps between which nothing is shuffled, which is all
    that this takes; where one does not, the run fails and says so.
    """

    def __init__(self, output: str, as_png: bool):
        self.output, self.as_png = output, as_png
        self.results = beam.metrics.Metrics.counter("export", "results")
        self.dead_letters = beam.metrics.Metrics.counter("export", "dead_letters")

    def start_bundle(self) -> None:
        self.open: dict[str, shards.Attempt] = {}
        self.ends: dict[str, int] = {}

    def process(self, answered: PredictionResult) -> Iterable[str]:
        record, answer = answered.example, answered.inference
        attempt = self.open.get(record.shard)
        if attempt is None:
            attempt = self.open[record.shard] = shards.Attempt(self.output, record.shard, self.as_png)
        if isinstance(record, End):
            self.ends[record.shard] = record.records
        elif isinstance(answer, str):
            attempt.dead_letter(record.source, answer)
        else:
            attempt.result(record.source, record.name, answer)
        if attempt.results + attempt.dead_letters != self.ends.get(record.shard):
            return []
        del self.open[record.shard]
        if attempt.commit():
            self.results.inc(attempt.results)
            self.dead_letters.inc(attempt.dead_letters)
        return [record.shard]

    def finish_bundle(self) -> None:
        if self.open:
            for attempt in self.open.values():
                attempt.close()
            raise RuntimeError(
                f"shards {', '.join(sorted(self.open))} did not come in one piece: this runner does not fuse the steps"
            )


def run(
    settings: plan.Settings, output: str, beam_flags: Sequence[str] = (), batch_size: int = BATCH_SIZE
) -> tuple[int, int]:
    """Does what is left of a run.

    Args:
        output: directory of the run; one process at a time may work on it.
    Returns:
        Numbers of results and of dead letters, of the whole run.
    Raises:
        ValueError: the settings do not go with the output, the input or the model.
        RuntimeError: the runner failed.
    """
    names = plan.open_or_make(output, settings)
    left = shards.unfinished(output, names)
    shards.clear_attempts(output)
    print(f"{len(left)} of {len(names)} shards to do", file=sys.stderr)
    if left:
        flags = list(beam_flags)
        if not any(flag.split("=")[0] == "--runner" for flag in flags):
            flags.append(f"--runner={IN_THIS_PROCESS}")
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        _ = (
            pipeline
            | "Shards" >> beam.Create(left)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(ReadShard(output))
            | "Model" >> RunInference(SavedModelHandler(settings.model, settings.command, batch_size))
            | "Write" >> beam.ParDo(WriteShard(output, settings.format == "png"))
        )
        pipeline.run().wait_until_finish()
        shards.clear_attempts(output)
    return shards.totals(output, names)


def parse(arguments: Optional[Sequence[str]] = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and the flags that are Beam's."""
    parser = argparse.ArgumentParser(
        prog="python -m export.pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=(EDIT, ENCODE))
    parser.add_argument("--model", required=True, help="an exported model: a version, or the directory of its versions")
    parser.add_argument("--input", required=True, help="folder, manifest or TFRecord files (a pattern in quotes)")
    parser.add_argument("--output", required=True, help="directory of this run; the same again goes on with it")
    parser.add_argument("--style", help="a picture, or a folder of pictures named as those of the input")
    parser.add_argument("--mask", help="the same; white where the picture takes the look of the style")
    parser.add_argument("--strength", type=float, default=1.0, help="0 to 1 (%(default)s)")
    parser.add_argument("--shards", type=int, help=f"default: {plan.PER_SHARD} pictures each, or one TFRecord file")
    parser.add_argument("--format", choices=plan.FORMATS, help="of edited pictures (png); codes are TFRecords always")
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, help="pictures per run of the model (%(default)s)"
    )
    options, flags = parser.parse_known_args(arguments)
    for before, flag in zip(["", *flags], flags):
        if not flag.startswith("-") and (not before.startswith("-") or "=" in before):
            parser.error(f"unexpected {flag}: patterns such as 'data/*.tfrecord' must be in quotes")
    if not any(flag.split("=")[0] == "--runner" for flag in flags):
        unknown = [flag for flag in flags if flag.startswith("-") and not flag.startswith("--direct_")]
        if unknown:
            parser.error(f"{', '.join(unknown)}: no flag of this command; flags of a Beam runner go with --runner")
    return options, flags


def settings_of(options: argparse.Namespace) -> plan.Settings:
    """What was asked, checked, with absolute paths.

    Raises:
        ValueError: a value that cannot be.
    """
    if not 0 <= options.strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {options.strength}")
    for name in ("shards", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(options, name)}")
    edits, is_manifest = options.command == EDIT, options.input.endswith(plan.MANIFESTS)
    may_bring = is_manifest or ".tfrecord" in os.path.basename(options.input)
    for name in ("style", "mask"):
        path = getattr(options, name)
        if not edits and path:
            raise ValueError(f"--{name} is for edit")
        if edits and not path and not may_bring:
            raise ValueError(f"--{name} is needed: a folder of pictures does not bring its own")
        if path and not tf.io.gfile.exists(path):
            raise ValueError(f"--{name}: {path} does not exist")
        if path and is_manifest and tf.io.gfile.isdir(path):
            raise ValueError(f"--{name}: with a manifest it must be a file, got the folder {path}")
    if not edits and options.format == "png":
        raise ValueError("--format png is for edit; codes are written as TFRecords")
    model = plan.model_version(plan.absolute(options.model))
    style, mask = (plan.absolute(path) if path else None for path in (options.style, options.mask))
    format = options.format or ("png" if edits else "tfrecord")
    return plan.Settings(
        command=options.command,
        model=model,
        fingerprint=plan.fingerprint(model),
        input=plan.absolute(options.input),
        style=style,
        mask=mask,
        strength=options.strength,
        format=format,
        shards=options.shards,
    )


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the pipeline. Returns the exit code: 0 done, dead letters or not; 1 the runner failed; 2 cannot be done."""
    options, flags = parse(arguments)
    logging.getLogger().setLevel(logging.WARNING)
    output = plan.absolute(options.output)
    try:
        settings = settings_of(options)
        results, dead_letters = run(settings, output, flags, options.batch_size)
    except (OSError, ValueError, tf.errors.OpError) as error:
        print(f"export.pipeline: {error}", file=sys.stderr)
        return 2
    print(f"{results} results and {dead_letters} dead letters in {output}")
    return 0


if __name__ == "__main__":
    from export.pipeline import main as _main  # workers must find these classes by the module's name, not in __main__

    sys.exit(_main())
