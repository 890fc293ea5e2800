"""The batch pipeline: every picture becomes a result or a dead letter with a reason, once, whatever kills the run."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from runners import environment
from serving.pictures import an_edit, bad_files, file

from export import pipeline_plan as plan
from export import pipeline_records as records
from export import pipeline_shards as shards
from export.client import Edit

ROOT = Path(__file__).resolve().parents[1]
PICTURES, SHARDS = 1000, 50
needs_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs the extra `pipeline`")


def settings(folder: Path, **changes: Any) -> plan.Settings:
    """An edit of what `folder` holds."""
    usual = plan.Settings("edit", "model", "0", str(folder), None, None, 1.0, "png", None)
    return usual._replace(**changes)


def planned(output: Path, wanted: plan.Settings) -> list[records.Record]:
    names = plan.open_or_make(str(output), wanted)
    return [record for name in names for record in records.read(str(output), name)]


def write(folder: Path, edit: Edit, name: str) -> dict[str, Any]:
    """Writes an edit's files; returns its line in a manifest."""
    for part in ("image", "style", "mask"):
        (folder / f"{name}-{part}").write_bytes(getattr(edit, part))
    return {**{part: f"{name}-{part}" for part in ("image", "style", "mask")}, "strength": edit.strength}


def lines(output: Path, name: str) -> list[dict[str, Any]]:
    """All lines of the files of one name, over the shards."""
    files = sorted(output.glob(f"*-of-*/{name}"))
    return [json.loads(line) for each in files for line in each.read_text().splitlines()]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "export.pipeline", *arguments]


def broken_lines(folder: Path) -> list[tuple[str, str]]:
    """Twenty ways of being broken: (line of a manifest, a part of the reason)."""
    good = an_edit(0)
    line = write(folder, good, "good")
    place = len(good.image) // 2
    flipped = good.image[:place] + bytes([good.image[place] ^ 0xFF]) + good.image[place + 1 :]
    small = good._replace(image=file(np.zeros((8, 8, 3), np.uint8)))
    cases: list[tuple[Any, str]] = [
        *((write(folder, edit, f"bad-{i}"), says) for i, (edit, says) in enumerate(bad_files().values())),
        (write(folder, good._replace(image=flipped), "flipped"), "image_bytes is damaged"),
        (write(folder, small, "small"), "image_bytes: 8 x 8 pixels; each side must have at least"),
        ({**line, "image": "absent.png"}, "image cannot be read"),
        ({**line, "style": "absent.png"}, "style cannot be read"),
        ({**line, "mask": "."}, "mask cannot be read"),
        ({**line, "strength": "much"}, "strength must be a number, got 'much'"),
        ({**line, "colour": "red"}, "unknown: colour; a line may have image, style, mask, strength"),
        ({"style": "x", "mask": "x"}, "the line names no image"),
        ({"image": "good-image", "mask": "good-mask"}, "the line names no style, and --style was not given"),
        (["good-image"], "not a JSON object"),
    ]
    return [*((json.dumps(each), says) for each, says in cases), ('{"image": "good', "not JSON")]


@needs_beam
@pytest.mark.slow(30)
@pytest.mark.one_stack
def test_1000_pictures_20_broken_killed_half_way_and_nothing_lost(tiny_export: Path, tmp_path: Path) -> None:
    edits = [an_edit(seed, 56, 56) for seed in range(PICTURES - 20)]
    broken = broken_lines(tmp_path)
    assert len(broken) == 20
    manifest = [json.dumps(write(tmp_path, edit, f"{number:03d}")) for number, edit in enumerate(edits)]
    for number, (line, _) in enumerate(broken):
        manifest.insert(number * 50, line)
    (tmp_path / "pictures.jsonl").write_text("\n".join(manifest))
    output = tmp_path / "edited"
    asked = command("edit", "--model", str(tiny_export), "--input", str(tmp_path / "pictures.jsonl"))
    asked += ["--output", str(output), "--shards", str(SHARDS)]

    killed = subprocess.Popen(asked, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(done := sorted(output.glob("*/finished.json"))) < SHARDS * 2 // 5:
        assert killed.poll() is None and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(10) == -signal.SIGKILL
    done = sorted(output.glob("*/finished.json"))
    before = {each: each.stat() for folder in done for each in folder.parent.rglob("*")}
    assert SHARDS // 3 < len(done) < SHARDS

    again = subprocess.run(asked, cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", timeout=600)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"980 results and 20 dead letters in {output}\n"
    assert f"{SHARDS - len(done)} of {SHARDS} shards to do" in again.stderr
    assert all(
        (each.stat().st_ino, each.stat().st_mtime_ns) == (old.st_ino, old.st_mtime_ns) for each, old in before.items()
    )
    assert not (output / ".attempts").exists()

    results, dead = lines(output, "results.jsonl"), lines(output, "dead-letters.jsonl")
    names = [f"{number:03d}-image" for number in range(len(edits))]
    assert sorted(Path(each["source"]).name for each in results) == names
    assert sorted(each["result"] for each in results) == [f"{name}.png" for name in names]
    assert sorted(png.stem for png in output.glob("*-of-*/*") if png.suffix == ".png") == names
    assert len(dead) == len(broken)
    for (line, says), each in zip(broken, dead):
        assert says in each["reason"], f"{line}: {each}"

    model = tf.saved_model.load(str(tiny_export / "1"))
    for number in range(0, len(edits), 70):
        (png,) = output.glob(f"*/{names[number]}.png")
        assert np.abs(levels(png.read_bytes()) - levels(edited(model, edits[number]))).max() <= 1


def levels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def edited(model: Any, edit: Edit) -> bytes:
    """What the exported model itself makes of an edit."""
    names = ("image_bytes", "style_image_bytes", "mask_bytes")
    files = {name: tf.constant([value]) for name, value in zip(names, edit)}
    return model.signatures["serving_default"](**files, strength=tf.constant([edit.strength]))["image_bytes"].numpy()[0]


def example(**features: bytes) -> bytes:
    return shards.example(dict(features))


def write_records(path: Path, *records: bytes) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


@needs_beam
def test_codes_of_tfrecords_are_the_models_own(
    tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import pipeline

    pictures = [an_edit(seed).image for seed in range(5)]
    write_records(tmp_path / "a.tfrecord", *(example(image=each) for each in pictures[:3]), b"no example", example())
    write_records(
        tmp_path / "b.tfrecord", example(**{"image/encoded": pictures[3]}), *(example(image=pictures[4]),) * 2
    )
    damaged = (tmp_path / "b.tfrecord").read_bytes()
    (tmp_path / "b.tfrecord").write_bytes(damaged[:-9] + b"\0" + damaged[-8:])
    output = tmp_path / "codes"
    options, flags = pipeline.parse(
        ["encode", "--model", str(tiny_export / "1"), "--input", str(tmp_path / "*.tfrecord"), "--output", str(output)]
    )
    counts = pipeline.run(pipeline.settings_of(options), str(output), flags, batch_size=2)
    assert counts == (5, 3)
    reasons = {each["source"]: each["reason"] for each in lines(output, "dead-letters.jsonl")}
    assert [Path(source).name for source in reasons] == ["a.tfrecord#3", "a.tfrecord#4", "b.tfrecord#2"]
    for reason, says in zip(
        reasons.values(), ("not a tf.train.Example", "neither image nor", "cannot be read from here")
    ):
        assert says in reason
    monkeypatch.chdir(tmp_path)  # the example reads codes/
    (reader,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(reader, names)
    written = list(names["dataset"].as_numpy_iterator())
    model = tf.saved_model.load(str(tiny_export / "1"))
    codes = model.signatures["encode_bytes"](image_bytes=tf.constant(pictures))
    assert len(written) == len(pictures) and written[3][0].decode() == str(tmp_path / "b.tfrecord#0")
    for (_, *ours), content, style in zip(written, codes["content"], codes["style"]):
        for value, expected in zip(ours, (content, style)):
            assert value.shape == expected.shape
            np.testing.assert_allclose(value, expected, atol=1e-5)
    assert pipeline.run(pipeline.settings_of(options), str(output), flags) == counts, "nothing was left to do"


@needs_beam
def test_an_exception_costs_one_picture_and_no_neighbour() -> None:
    from export import pipeline

    class Model:
        def __init__(self) -> None:
            self.signatures = {"encode_bytes": self.encode}

        def encode(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
            if b"large" in image_bytes.numpy():
                raise tf.errors.ResourceExhaustedError(None, None, "no memory is left")
            return {"content": image_bytes, "style": image_bytes, "error": tf.fill([len(image_bytes)], "")}

    def record(image: bytes, problem: str = "") -> records.Record:
        return records.Record("0", "", "", image, b"", b"", 1.0, problem)

    batch = [record(b"a"), record(b"large"), record(b"", "absent"), records.End("0", 4), record(b"b")]
    handler = pipeline.SavedModelHandler("model", "encode", 5)
    answers = [each.inference for each in handler.run_inference(batch, Model())]
    assert [each["content"] for each in (answers[0], answers[4])] == [b"a", b"b"]
    assert answers[1:4] == ["ResourceExhaustedError: no memory is left", "absent", ""]


def test_a_folder_is_planned_with_its_partners(tmp_path: Path) -> None:
    for path in ("in/b.jpg", "in/a/c.png", "in/a/c.jpg", "in/.hidden.png", "in/notes.txt", "masks/b.png", "look"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    wanted = settings(tmp_path / "in", style=str(tmp_path / "look"), mask=str(tmp_path / "masks"), strength=0.5)
    first, second, third = planned(tmp_path / "out", wanted)
    assert [each.name for each in (first, second, third)] == ["a/c", "a/c-2", "b"]
    assert first.problem == f"no mask for it in {tmp_path / 'masks'}"
    assert third[3:] == (b"in/b.jpg", b"look", b"masks/b.png", 0.5, "")
    (tmp_path / "in" / "late.png").write_text("late")
    assert len(planned(tmp_path / "out", wanted)) == 3, "a restart follows the plan"
    with pytest.raises(ValueError, match="belongs to a run whose strength was 0.5, now it is 0.25"):
        plan.open_or_make(str(tmp_path / "out"), wanted._replace(strength=0.25))


def test_a_csv_manifest_fills_in_from_the_command(tmp_path: Path) -> None:
    with open(tmp_path / "list.csv", "w", newline="") as opened:
        csv.writer(opened).writerows(
            [["image", "style", "strength"], ["é.png", "", "0.25"], ["é.png", "s", ""], ["a", "b", "c", "d"]]
        )
    for name in ("é.png", "s", "look", "mask"):
        (tmp_path / name).write_text(name)
    wanted = settings(tmp_path / "list.csv", style=str(tmp_path / "look"), mask=str(tmp_path / "mask"), shards=2)
    first, second, third = planned(tmp_path / "out", wanted)
    assert first[2:] == ("é", "é.png".encode(), b"look", b"mask", 0.25, "")
    assert second[2:] == ("é-2", "é.png".encode(), b"s", b"mask", 1.0, "")
    assert "unknown: more" in third.problem and third.source.endswith("list.csv:4")
    (tmp_path / "list.csv").write_text("picture\na.png\n")
    with pytest.raises(ValueError, match="must name the columns, with image among them, got .'picture'"):
        plan.open_or_make(str(tmp_path / "other"), wanted)
    assert not (tmp_path / "other").exists()


def test_of_two_attempts_at_a_shard_one_counts(tmp_path: Path) -> None:
    first, second = (shards.Attempt(str(tmp_path), "0-of-1", True) for _ in range(2))
    for attempt in (first, second):
        attempt.result("photos/a.jpg", "a", {"image": b"png"})
        attempt.dead_letter("photos/b.jpg", "broken")
    assert shards.unfinished(str(tmp_path), ["0-of-1"]) == ["0-of-1"]
    assert first.commit() and not second.commit()
    assert shards.unfinished(str(tmp_path), ["0-of-1"]) == []
    assert shards.totals(str(tmp_path), ["0-of-1"]) == (1, 1)
    (tmp_path / "0-of-1" / "finished.json").unlink()  # as a kill in the middle of an object store's rename leaves it
    (tmp_path / "0-of-1" / "left.png").write_text("")
    third = shards.Attempt(str(tmp_path), "0-of-1", True)
    assert third.commit()
    assert sorted(path.name for path in (tmp_path / "0-of-1").iterdir()) == [
        *("dead-letters.jsonl", "finished.json", "results.jsonl")
    ]


@needs_beam
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--strength", "2"], "strength must be in [0, 1], got 2.0"),
        (["--shards", "0"], "shards must be 1 or more, got 0"),
        (["--mask", "absent"], "--mask: absent does not exist"),
        ([], "--mask is needed: a folder of pictures does not bring its own"),
        (
            ["--mask", "look", "--input", "list.csv", "--style", "."],
            "with a manifest it must be a file, got the folder",
        ),
        (["--mask", "look", "--model", "empty"], "empty: neither an exported model nor a directory of its versions"),
        (["--mask", "look", "--input", "nothing"], "nothing: no such file or folder"),
        (["--mask", "look", "--input", "look"], "look: not a folder, a manifest (.csv, .jsonl) or a .tfrecord file"),
        (["--mask", "look", "--input", "empty"], "empty: there is nothing in it to edit"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export import pipeline

    monkeypatch.chdir(tmp_path)
    for path in ("model/2/saved_model.pb", "model/2/variables/variables.index", "look", "list.csv"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("")
    Path("empty").mkdir()
    usual = ["edit", "--model", "model", "--input", ".", "--style", "look", "--output", "out"]
    assert pipeline.main([*usual, *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


@needs_beam
def test_flags_that_nobody_takes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from export import pipeline

    usual = ["encode", "--model", "m", "--input", "i", "--output", "o"]
    assert pipeline.parse([*usual, "--direct_num_workers=2"])[1] == ["--direct_num_workers=2"]
    assert len(pipeline.parse([*usual, "--runner=FlinkRunner", "--flink_master=host:8081"])[1]) == 2
    with pytest.raises(SystemExit):
        pipeline.parse([*usual, "--stile=x"])
    assert "--stile=x: no flag of this command" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pipeline.parse([*usual, "--input", "a.tfrecord", "b.tfrecord"])
    assert "unexpected b.tfrecord: patterns such as" in capsys.readouterr().err


def test_the_package_needs_no_beam() -> None:
    program = "import sys\nsys.modules['apache_beam'] = None\nimport export, export.client, export.signatures\n"
    program += "try:\n import export.pipeline\nexcept ImportError as error:\n print(error)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "the pipeline needs the extra `pipeline`" in done.stdout
