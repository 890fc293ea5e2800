"""Some hundred generated inputs for everything that reads untrusted bytes; `make fuzz` feeds 20,000 to each."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import pytest
from runners import fuzz_runner
from runners.fuzz_runner import Broken, Target

from tcp_tf import images


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    ("name", "count"), [("pictures", 400), ("configurations", 200), ("checkpoints", 400), ("requests", 100)]
)
def test_generated_inputs(name: str, count: int) -> None:
    outcomes = fuzz_runner.run(name, count, seed=1)
    assert sum(outcomes.values()) == count
    # The inputs are neither all sound nor all of them hopeless.
    assert name == "checkpoints" or outcomes["read"] > count / 20
    assert name == "requests" or outcomes["read"] < count


def test_a_picture_on_which_tensorflows_decoder_hangs_is_refused_at_once() -> None:
    """Found by fuzzing the served signatures; see SECURITY.md."""
    data = (Path(__file__).parent / "data" / "hangs_tensorflow.jpg").read_bytes()
    began = time.monotonic()
    for reader in (images.decode, images.load, images.examine):
        with contextlib.suppress(images.ImageError):
            reader(data)
    assert time.monotonic() - began < 5


def test_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> None:
        if data == b"crash":
            raise IndexError("tuple index out of range")
        if data in (b"no", b"silent"):
            raise ValueError("no" if data == b"no" else " ")
        if data == b"slow":
            began = time.process_time()
            while time.process_time() < began + 0.02:
                pass

    target = Target(read, [b"seed"], (ValueError,))
    assert fuzz_runner.check(target, b"fine") == "read" and fuzz_runner.check(target, b"no") == "ValueError"
    monkeypatch.setattr(fuzz_runner, "SECONDS", 0.01)
    for data, rule in (
        (b"crash", "IndexError: tuple"),
        (b"silent", "without a message"),
        (b"slow", r"read after 0\.0 s"),
    ):
        with pytest.raises(Broken, match=rule):
            fuzz_runner.check(target, data)


def test_inputs_are_a_function_of_the_seed_and_mostly_differ() -> None:
    target = Target(len, fuzz_runner.picture_seeds(), ())
    made = [fuzz_runner.changed(random.Random(f"0/{number}"), target) for number in range(200)]
    assert made == [fuzz_runner.changed(random.Random(f"0/{number}"), target) for number in range(200)]
    assert len(set(made)) > 150 and len(set(made) - set(target.seeds)) > 130
