"""Feeds generated input to what reads untrusted bytes; the first that breaks a rule ends it, and is written to a file.

    python tests/runners/fuzz_runner.py {pictures,configurations,checkpoints,requests} [--count 20000] [--seed 0]

Inputs are valid ones with bytes or words changed, cut, doubled and joined, as a function of (seed, number). The rules:
an exception is one that the reader documents, with a message; an answer takes at most 5 seconds of the processor; the
process never grows by 2 GiB. `make fuzz` runs all four; the tests run a few of each.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import os
import random
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SECONDS, GIB = 5.0, 2.0  # the most that one input may take, and by which the process may grow
HANG = 20.0  # seconds by the clock after which an input ends the process: more, because others may be busy too
INTERESTING = (
    b"\x00",
    b"\xff",
    b"\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x00" * 8,
)


class Target(NamedTuple):
    """A reader, what to start from, and the exceptions that it may raise."""

    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    refusals: tuple[type[Exception], ...]
    words: Sequence[bytes] = INTERESTING


class Broken(Exception):
    """An input that broke a rule."""


def changed(pick: random.Random, target: Target) -> bytes:
    """One generated input."""
    data = bytearray(pick.choice(target.seeds))
    for _ in range(pick.choice((1, 1, 1, 2, 3, 8))):
        at = pick.randrange(len(data) + 1)
        # Headers decide most, so half of all changes are there.
        at = min(at, pick.randrange(64)) if pick.random() < 0.5 else at
        until = min(len(data), at + pick.choice((1, 2, 4, 16, 200)))
        action = pick.randrange(8)
        if action == 0 and at < len(data):
            data[at] ^= 1 << pick.randrange(8)
        elif action == 1:
            data[at:until] = pick.choice(target.words)
        elif action == 2:
            data[at:at] = pick.choice(target.words)
        elif action == 3:
            del data[at:until]
        elif action == 4:
            data[at:at] = data[at:until] * pick.choice((1, 2, 50))
        elif action == 5:
            data[at:until] = pick.randbytes(until - at)
        elif action == 6:
            other = pick.choice(target.seeds)
            data[at:] = other[pick.randrange(len(other) + 1) :]
        elif pick.random() < 0.3:
            del data[at:]
    return bytes(data)


def check(target: Target, data: bytes) -> str:
    """Reads one input; returns what came of it in a word.

    Raises:
        Broken: a rule is broken.
    """
    faulthandler.dump_traceback_later(HANG, exit=True)  # where it is, if it does not end at all
    began = time.process_time()  # another program may be running
    try:
        target.read(data)
        outcome = "read"
    except target.refusals as error:
        outcome = type(error).__name__
        if not str(error).strip():
            raise Broken(f"{outcome} without a message") from error
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds = time.process_time() - began
    if seconds > SECONDS:
        raise Broken(f"{outcome} after {seconds:.1f} s")
    return outcome


def picture_bytes(format: str, mode: str = "RGB", size: tuple[int, int] = (40, 36), **options: object) -> bytes:
    """An encoded picture of coarse noise."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def picture_seeds() -> list[bytes]:
    """Every format that is read, and what is odd about some."""
    turned = Image.Exif()
    turned[0x0112] = 6
    seeds = [picture_bytes("JPEG", mode) for mode in ("RGB", "L", "CMYK")]
    seeds += [picture_bytes("JPEG", progressive=True, exif=turned), picture_bytes("JPEG", size=(400, 300))]
    seeds += [picture_bytes("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")]
    seeds += [picture_bytes("PNG", exif=turned), picture_bytes("BMP"), picture_bytes("BMP", "P")]
    return [*seeds, picture_bytes("WEBP"), picture_bytes("WEBP", "RGBA", lossless=True), picture_bytes("GIF", "P")]


def pictures(_: Path) -> Target:
    """Pictures as training, the editor, the command line and the web page read them."""
    from tcp_tf import images

    def read(data: bytes) -> None:
        images.examine(data)
        pixels = images.decode(data, least=16)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        images.to_rgb(images.load(data))

    return Target(read, picture_seeds(), (images.ImageError,))


def configurations(folder: Path) -> Target:
    """A configuration's file."""
    from tcp_tf import config

    def read(data: bytes) -> None:
        file = folder / "config.yaml"
        file.write_bytes(data)
        assert config.from_dict(config.load(file).model_dump())

    words = [b"&a ", b"*a", b"!!python/object/apply:os.system [x]", b"[", b"{", b": ", b"\n  ", b"- ", b"1e999", b"-1"]
    words += [b"99999999999999999999", b".nan", b"null", b"'", b'"', b"|\n", b"<<: *a", b"\xff", b"\x00", b"folder:/x"]
    words += [b"[" * 5000, b"{a: " * 2000, b"a: &a [*a]\n", b"2001-01-01", b"0o17", b"? "]
    seeds = [file.read_bytes() for file in sorted((ROOT / "configs").glob("*.yaml"))]
    return Target(read, seeds, (config.ConfigError,), words)


def checkpoints(folder: Path) -> Target:
    """An official checkpoint, its archive and the pickle inside."""
    from tcp_tf import config, official_names, official_sizes, torch_file
    from tcp_tf.torch_file import TorchFileError

    arrays = {"E.a.weight": np.ones((2, 3, 3, 3), np.float32), "G.b.bias": np.zeros(4, np.float32)}
    torch_file.write(folder / "seed.pth", arrays)
    seeds = [(ROOT / "tests" / "data" / name).read_bytes() for name in ("torch_zip.pth", "torch_legacy.pth")]
    seeds.append((folder / "seed.pth").read_bytes())
    inner = []
    for seed in (seeds[0], seeds[2]):
        with zipfile.ZipFile(io.BytesIO(seed)) as archive:
            inner.append({name: archive.read(name) for name in archive.namelist()})
    pick = random.Random(0)

    def read(data: bytes) -> None:
        file = folder / "damaged.pth"
        if pick.random() < 0.5:  # a sound archive around a damaged pickle
            members = dict(pick.choice(inner))
            name = pick.choice([name for name in members if "data" in name])
            members[name] = data[: 1 << 16] if pick.random() < 0.1 else changed(pick, Target(read, [members[name]], ()))
            with zipfile.ZipFile(file, "w") as archive:
                for member, content in members.items():
                    archive.writestr(member, content)
        else:
            file.write_bytes(data)
        shapes = {name: array.shape for name, array in torch_file.read(file).items()}
        official_sizes.configuration(shapes)

    words = (
        *INTERESTING,
        b"cos\nsystem\n",
        b"\x80\x02",
        b"(",
        b"t",
        b"R",
        b"q\x00",
        b"h\x00",
        b"X\xff\xff\xff\x7f",
        b"}",
        b"u.",
    )
    return Target(read, seeds, (TorchFileError, official_names.MismatchError, config.ConfigError), words)


def requests(_: Path) -> Target:
    """The served signature of encoded pictures, with a small model."""
    import tensorflow as tf

    from export import signatures
    from tcp_tf import config
    from tcp_tf.autoencoder import AutoEncoder

    tiny = config.load(ROOT / "configs" / "tiny.yaml")
    name, function, inputs = signatures.build(AutoEncoder.from_config(tiny), tiny, max_pixels=1 << 16)[0]
    assert name == signatures.DEFAULT
    served = tf.function(function, input_signature=inputs, autograph=False)
    good, mask = picture_bytes("JPEG", size=(64, 64)), picture_bytes("PNG", "L", size=(64, 64))
    pick = random.Random(0)

    def read(data: bytes) -> None:
        columns = [good, good, mask]
        columns[pick.randrange(3)] = data
        answer = served(*([tf.constant([each]) for each in columns]), tf.constant([0.5]))
        picture, error = bytes(answer["image_bytes"].numpy()[0]), bytes(answer["error"].numpy()[0])
        assert bool(error) != bool(picture), "either a picture or a sentence"

    read(good)  # the first call makes the graph
    seeds = [*picture_seeds(), good, mask, picture_bytes("PNG", size=(500, 500))]
    return Target(read, seeds, (tf.errors.InvalidArgumentError,))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "pictures": pictures,
    "configurations": configurations,
    "checkpoints": checkpoints,
    "requests": requests,
}


def most_memory() -> float:
    """The most that this process has held at any time, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(name: str, count: int, seed: int = 0, report: Optional[Callable[[str], None]] = None) -> Counter[str]:
    """Feeds `count` inputs to a target; returns how often each thing came of it.

    Raises:
        Broken: by the input that is then in `fuzz-NAME-PID.bin` of the temporary directory.
    """
    outcomes: Counter[str] = Counter()
    kept = Path(tempfile.gettempdir()) / f"fuzz-{name}-{os.getpid()}.bin"
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        before = most_memory()
        for number in range(count):
            data = changed(random.Random(f"{seed}/{number}"), target)
            kept.write_bytes(data)  # before it is read: what kills the process is there too
            try:
                outcomes[check(target, data)] += 1
                grown = most_memory() - before
                if grown > GIB:
                    raise Broken(f"{grown:.1f} GiB of memory")
            except Broken as broken:
                raise Broken(f"{name}: input {number} of seed {seed} ({kept}): {broken}") from broken
            if report and (number + 1) % 1000 == 0:
                report(f"{name}: {number + 1} of {count}, {grown:.2f} GiB, {dict(outcomes)}")
    kept.unlink()
    return outcomes


def main() -> int:
    """Returns the exit code: 0, or 1 where an input broke a rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--count", type=int, default=20_000, help="inputs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")  # Pillow's, of pictures that it reads all the same
    sys.path.insert(0, str(ROOT))
    try:
        run(options.target, options.count, options.seed, report=lambda line: print(line, flush=True))
    except Broken as broken:
        print(broken, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
