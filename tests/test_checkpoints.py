"""Checkpoints survive a kill at any moment, and no damaged one is ever taken for a good one.

What is saved here is one small variable, so that hundreds of savings take a second; whole trainings that are killed
are in `test_training.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from kills import Kill, cut, flip

from tcp_tf import callbacks, checkpoints, run_dir
from tcp_tf.checkpoints import RunDirectoryError


class Saved:
    """A variable whose value is the step, and the manager that writes it."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.said: list[str] = []
        self.value = tf.Variable(tf.zeros([1000]))
        self.manager = checkpoints.Manager(folder, tf.train.Checkpoint(value=self.value), keep, self.said.append)

    def save(self, step: int) -> str:
        self.value.assign(tf.fill([1000], float(step)))
        return self.manager.save(checkpoint_number=step)

    def newest_step(self) -> int:
        """The value that the newest whole checkpoint holds."""
        assert self.manager.latest_checkpoint is not None
        self.manager.checkpoint.restore(self.manager.latest_checkpoint).assert_consumed()
        assert len(set(self.value.numpy())) == 1
        return int(self.value[0])


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def files_of(*steps: int) -> list[str]:
    """What a folder of whole checkpoints holds."""
    kinds = ("data-00000-of-00001", "index", "json")
    return sorted(["checkpoint", *(f"ckpt-{step}.{kind}" for step in steps for kind in kinds)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 8, 16 and 24; one was deleted."""
    saved = Saved(tmp_path / "checkpoints")
    for step in (4, 8, 16, 24):
        saved.save(step)
    return tmp_path / "checkpoints"


def test_what_is_written(folder: Path) -> None:
    assert names(folder) == files_of(8, 16, 24)
    files = json.loads((folder / "ckpt-24.json").read_text())["files"]
    assert set(files) == {"ckpt-24.index", "ckpt-24.data-00000-of-00001"}
    for name, known in files.items():
        content = (folder / name).read_bytes()
        assert known == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert checkpoints.newest(folder) == tf.train.latest_checkpoint(str(folder)) == str(folder / "ckpt-24")
    assert Saved(folder).newest_step() == 24


def test_a_directory_may_move(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert checkpoints.newest(moved) == tf.train.latest_checkpoint(str(moved)) == str(moved / "ckpt-24")


def test_steps_are_numbers(tmp_path: Path) -> None:
    saved = Saved(tmp_path, keep=2)
    for step in (9, 10, 100):
        saved.save(step)
    assert names(tmp_path) == files_of(10, 100)


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None and checkpoints.newest(tmp_path / "nowhere") is None
    assert Saved(tmp_path / "nowhere").manager.latest_checkpoint is None
    assert not (tmp_path / "nowhere").exists()


def test_facts_go_with_a_checkpoint(folder: Path) -> None:
    saved = Saved(folder)
    saved.manager.facts = {"replicas": 2}
    assert checkpoints.facts(saved.save(32)) == {"replicas": 2}
    assert checkpoints.facts(str(folder / "ckpt-24")) == {}


# ---- damage


DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("ckpt-24.data-00000-of-00001", cut, " bytes instead of "),
    ("ckpt-24.data-00000-of-00001", lambda file: file.write_bytes(b""), "has 0 bytes instead of"),
    ("ckpt-24.data-00000-of-00001", flip, "holds other bytes than were written"),
    ("ckpt-24.data-00000-of-00001", Path.unlink, "is missing"),
    ("ckpt-24.index", cut, "bytes instead of"),
    ("ckpt-24.index", flip, "holds other bytes than were written"),
    ("ckpt-24.json", cut, "ckpt-24.json cannot be read"),
    ("ckpt-24.json", lambda file: file.write_bytes(b"\xff\xfe"), "ckpt-24.json cannot be read"),
    ("ckpt-24.json", lambda file: file.write_text("[]"), "ckpt-24.json cannot be read"),
    ("ckpt-24.json", lambda file: file.write_text('{"files": {}}'), "is not in ckpt-24.json"),
]


@pytest.mark.parametrize(("name", "harm", "reason"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_newest_one_is_passed_over(folder: Path, name: str, harm: Callable, reason: str) -> None:
    harm(folder / name)
    saved = Saved(folder)
    assert saved.manager.latest_checkpoint == str(folder / "ckpt-16") and saved.newest_step() == 16
    (line,) = saved.said
    assert line.startswith(f"{folder / 'ckpt-24'}: damaged, ") and reason in line
    assert line.endswith("; the checkpoint before it is used") and "\n" not in line


def test_every_flipped_byte_is_noticed(folder: Path) -> None:
    """In each of the three files; in the manifest, where the text still reads the same, it may not matter."""
    for name in ("ckpt-24.index", "ckpt-24.data-00000-of-00001"):
        for place in range(50):
            flip(folder / name, place / 50)
            assert checkpoints.newest(folder, lambda line: None) == str(folder / "ckpt-16"), (name, place)
            flip(folder / name, place / 50)
            assert checkpoints.newest(folder) == str(folder / "ckpt-24")


def test_two_damaged_ones(folder: Path) -> None:
    for step in (16, 24):
        flip(folder / f"ckpt-{step}.index")
    saved = Saved(folder)
    assert saved.newest_step() == 8 and [line.split(":")[0][-7:] for line in saved.said] == ["ckpt-24", "ckpt-16"]


def test_none_is_whole(folder: Path) -> None:
    for step in (8, 16, 24):
        cut(folder / f"ckpt-{step}.data-00000-of-00001")
    with pytest.raises(
        RunDirectoryError, match="no checkpoint is whole: .*ckpt-24: damaged.*ckpt-8: damaged"
    ) as refused:
        Saved(folder)
    assert "\n" not in str(refused.value)


def test_a_damaged_one_is_written_again(folder: Path) -> None:
    """It is newer than the one that is used, so it stays until training comes to its step once more."""
    flip(folder / "ckpt-24.index")
    saved = Saved(folder)
    saved.save(20)
    assert names(folder) == files_of(8, 16, 20, 24) and Saved(folder).newest_step() == 20
    saved.save(24)
    assert names(folder) == files_of(16, 20, 24) and Saved(folder).newest_step() == 24


def test_checkpoints_of_tensorflows_own_manager_are_taken_on_trust(tmp_path: Path) -> None:
    value = tf.Variable([7.0] * 1000)
    theirs = tf.train.CheckpointManager(tf.train.Checkpoint(value=value), str(tmp_path), max_to_keep=2)
    for step in (8, 16, 24):
        theirs.save(checkpoint_number=step)
    saved = Saved(tmp_path)
    assert saved.newest_step() == 7 and saved.said == [] and checkpoints.facts(str(tmp_path / "ckpt-24")) == {}
    saved.save(32)
    saved.save(40)
    assert names(tmp_path) == sorted({*files_of(32, 40), "ckpt-24.index", "ckpt-24.data-00000-of-00001"})


# ---- kills


@pytest.mark.parametrize("again", [False, True], ids=["new", "over a damaged one"])
def test_a_kill_at_any_moment_of_a_saving(tmp_path: Path, again: bool) -> None:
    """Either the old checkpoint or the new one is the newest, whole, and nothing else is left by the next start."""
    for calls in range(100):
        folder = tmp_path / str(calls)
        saved = Saved(folder, keep=2)
        for step in (8, 16):
            saved.save(step)
        if again:
            saved.save(24)
            flip(folder / "ckpt-24.data-00000-of-00001")
        with Kill(calls) as kill:
            saved.save(24)
        finished = not kill.moment
        after = Saved(folder, keep=2)
        assert after.newest_step() in ((24,) if finished else (16, 24)), calls
        assert not [line for line in after.said if not again], calls
        after.save(32)
        assert len([name for name in names(folder) if name.endswith(".index")]) == 2
        kept = {int(name[5:-6]) for name in names(folder) if name.endswith(".index")}
        assert names(folder) == files_of(*kept), calls
        if finished:
            break
    assert calls > 10


def test_what_tensorflow_leaves_when_killed_is_removed(folder: Path) -> None:
    (folder / "ckpt-32_temp").mkdir()
    (folder / "ckpt-32_temp" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"x")
    (folder / "checkpoint.tmp0123456789").write_bytes(b"x")
    (folder / "ckpt-32.data-00000-of-00001").write_bytes(b"x")
    (folder / "notes.txt").write_text("a person's own file stays")
    Saved(folder)
    assert names(folder) == sorted([*files_of(8, 16, 24), "notes.txt"])


# ---- a disk that fails


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond a kilobyte: what writes gets an error from the system, as on a full disk.

    No longer than a saving takes, since it holds for the whole process, and so for pytest's own output to a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_others(folder: Path) -> None:
    saved = Saved(folder)
    with (
        pytest.raises(callbacks.CannotWrite, match="ckpt-32 cannot be written: File too large$") as refused,
        full_disk(),
        callbacks.writing(folder / "ckpt-32"),
    ):
        saved.save(32)
    assert "\n" not in str(refused.value)
    assert names(folder) == files_of(8, 16, 24)
    assert saved.manager.latest_checkpoint == str(folder / "ckpt-24") and Saved(folder).newest_step() == 24


def test_no_space_left_is_said_in_the_systems_words(tmp_path: Path) -> None:
    with (
        pytest.raises(callbacks.CannotWrite, match=r"^grids cannot be written: No space left on device$"),
        callbacks.writing(Path("grids")),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 100_000)


def test_a_disk_that_tells_lies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads back other than it was written is no checkpoint, and costs none of the older ones."""
    saved = Saved(folder)
    move = os.replace

    def bad(source: Path, target: Path) -> None:
        move(source, target)
        if Path(target).name == "ckpt-32.data-00000-of-00001":
            flip(Path(target))

    monkeypatch.setattr(os, "replace", bad)
    with pytest.raises(OSError, match="reads back other than it was written .*holds other bytes"):
        saved.save(32)
    assert names(folder) == files_of(8, 16, 24) and Saved(folder).newest_step() == 24


# ---- one training at a time


def test_a_run_directory_is_claimed_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config-abc").write_text("half a configuration of a killed process")
    with run_dir.claimed(tmp_path / "run"):
        assert names(tmp_path / "run") == [".lock"]
        wanted = rf"^{tmp_path}/run: process {os.getpid()} on \S+ is training in it; .*another run directory$"
        with pytest.raises(RunDirectoryError, match=wanted), run_dir.claimed(tmp_path / "run"):
            pass
        with run_dir.claimed(tmp_path / "other"):
            pass
    with run_dir.claimed(tmp_path / "run"):
        pass


def test_what_a_killed_training_left_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    with run_dir.claimed(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / ".lock").read_text() == ""
