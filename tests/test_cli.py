"""The command line: what it writes, what it refuses, and that one bad picture does not stop the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

import tcp_tf
from tcp_tf import cli, cli_files
from tcp_tf.config import PRECISIONS
from tcp_tf.styles import StyleLibrary

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ with two pictures and a broken one, looks/ with two, masks/ for both photos."""
    base = tmp_path_factory.mktemp("cli")
    for name, picture, size in [
        ("photos/a.png", photographs.astronaut(), (72, 60)),
        ("photos/b.jpg", photographs.chelsea(), (64, 64)),
        ("looks/cup.png", photographs.coffee(), (64, 64)),
        ("looks/sky.png", photographs.rocket(), (80, 64)),
    ]:
        (base / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).resize(size).save(base / name)
    (base / "photos" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (base / "masks").mkdir()
    for name, size in (("a", (72, 60)), ("b", (64, 64))):
        mask = Image.new("L", size)
        mask.paste(255, (8, 8, 40, 40))
        mask.save(base / "masks" / f"{name}.png")
    return base


def run(model: Path, command: str, *arguments: object) -> int:
    return cli.main([command, "--model", str(model), *map(str, arguments)])


def test_edit(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    image, mask, output = folder / "photos" / "a.png", folder / "masks" / "a.png", tmp_path / "new" / "edited.png"
    style, other = folder / "looks" / "cup.png", folder / "looks" / "sky.png"
    arguments = ["--image", image, "--style", style, "--mask", mask, "--preserve-background", "--output", output]
    assert run(tiny_run, "edit", *arguments) == 0
    before, after, painted = (np.asarray(Image.open(file)) for file in (image, output, mask))
    assert after.shape == before.shape
    assert np.array_equal(after[painted == 0], before[painted == 0])
    assert np.mean(after[painted > 0] != before[painted > 0]) > 0.5
    both = ["--style", style, "--mask", mask, "--style", other, "--mask", folder / "masks" / "b.png", "--strength", 0.5]
    assert run(tiny_run, "edit", "--image", image, *both, "--feather", 3, "--output", tmp_path / "two.jpg") == 0
    assert Image.open(tmp_path / "two.jpg").size == (72, 60)


def test_precision(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["--content", folder / "photos" / "a.png", "--style", folder / "looks" / "cup.png", "--output"]
    files = {name: tmp_path / f"{name}.png" for name in PRECISIONS}
    for name, file in files.items():
        assert run(tiny_run, "swap", *arguments, file, "--precision", name) == 0
    exact, coarse = (np.asarray(Image.open(file), np.float32) for file in files.values())
    assert 0.0 < np.sqrt(np.mean((coarse - exact) ** 2)) < 2.5


def test_a_folder_goes_on(tiny_export: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    style = folder / "looks" / "cup.png"
    assert run(tiny_export, "swap", "--content", folder / "photos", "--style", style, "--output", tmp_path / "out") == 2
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tcp_tf:")]
    assert len(errors) == 1
    assert "broken.png" in errors[0]
    pattern, masks = str(folder / "photos" / "[ab].*"), folder / "masks"
    arguments = ["--image", pattern, "--style", style, "--mask", masks, "--output", tmp_path / "edited"]
    assert run(tiny_export, "edit", *arguments) == 0
    assert Image.open(tmp_path / "edited" / "a.png").size == (72, 60)


def test_interpolate(
    tiny_run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--image", folder / "photos" / "a.png", "--style", folder / "looks" / "cup.png", "--steps", 4]
    assert run(tiny_run, "interpolate", *arguments, "--bounce", "--output", tmp_path / "way.gif") == 0
    with Image.open(tmp_path / "way.gif") as moving:
        assert (moving.n_frames, moving.size) == (6, (72, 60))
    assert run(tiny_run, "interpolate", *arguments, "--output", tmp_path / "way.png") == 0
    assert Image.open(tmp_path / "way.png").size == (4 * 72, 60)
    mask = ["--mask", folder / "masks" / "a.png", "--preserve-background"]
    assert run(tiny_run, "interpolate", *arguments, *mask, "--output", tmp_path / "frames") == 0
    frames = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "frames").iterdir())]
    painted = np.asarray(Image.open(folder / "masks" / "a.png")) > 0
    assert len(frames) == 4
    assert all(np.array_equal(frame[~painted], frames[0][~painted]) for frame in frames)
    assert not np.array_equal(frames[0], frames[-1])
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert run(tiny_run, "interpolate", *arguments, "--output", tmp_path / "way.mp4") == 2
    assert "MP4 needs the extra `video`" in capsys.readouterr().err
    assert not (tmp_path / "way.mp4").exists()


def test_grid_and_codes(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    photos, looks = folder / "photos", folder / "looks"
    arguments = ["--content", photos, "--style", looks, "--cell", 32, "--output", tmp_path / "grid.png"]
    assert run(tiny_run, "grid", *arguments) == 2, "the broken one has been left out"
    assert Image.open(tmp_path / "grid.png").size == (3 * 36 - 4, 3 * 36 - 4)
    assert run(tiny_run, "encode", "--image", photos / "a.png", "--output", tmp_path / "a.npz") == 0
    with np.load(tmp_path / "a.npz", allow_pickle=False) as codes:
        assert codes["content"].shape == (8, 9, 4)
        assert codes["style"].shape == (16,)
        assert codes["size"].tolist() == [72, 60]
        style = codes["style"]
    assert run(tiny_run, "encode", "--image", looks, photos / "a.png", "--library", tmp_path / "looks.npz") == 0
    library = StyleLibrary.load(tmp_path / "looks.npz")
    assert library.names == ("cup", "sky", "a")
    assert library.styles.shape == (3, len(style))
    for number, name in enumerate((f"{tmp_path / 'looks.npz'}:cup", looks / "cup.png")):
        swap = ["--content", photos / "b.jpg", "--style", name, "--output", tmp_path / f"{number}.png"]
        assert run(tiny_run, "swap", *swap) == 0
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


SWAP = "swap --model {m} --content {f}/photos/a.png --style {f}/looks/cup.png --output {o}.png"
EDIT = "edit --model {m} --image {f}/photos/a.png --mask {f}/masks/a.png --style {f}/looks/cup.png --output {o}.png"
BAD = {  # what is wrong: command line, part of the message
    "no model": (SWAP.replace("{m}", "{f}/none"), "--model: "),
    "a folder is no model": (SWAP.replace("{m}", "{f}"), "neither a run directory"),
    "no picture": (SWAP.replace("a.png", "c.png"), "c.png: there is no such file"),
    "no style": (SWAP.replace("cup.png", "x.png"), "x.png: No such file"),
    "no mask": (EDIT.replace("masks/a.png", "x"), "x: there is no such file"),
    "an ending": (SWAP.replace("{o}.png", "{o}.xyz"), ".xyz: pictures are written as"),
    "a folder as a file": (SWAP.replace("/a.png", ""), "several pictures need a folder"),
    "itself": (SWAP.replace("{o}.png", "{f}/photos/a.png"), "would replace a picture"),
    "strength": (EDIT + " --strength 3", "must be in [0, 1], got 3.0"),
    "pairs": (EDIT + " --style b --mask b --mask c", "2 times --style for 3 times --mask"),
    "library": (SWAP.replace("looks/cup.png", "a.npz:x"), "a.npz: not a library"),
    "steps": ("interpolate --model {m} --image {f}/photos/a.png --style a --steps 1 --output {o}.gif", "got 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str, tiny_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, message = BAD[case]
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    arguments = [part.format(m=tiny_run, f=folder, o=tmp_path / "out") for part in line.split()]
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([error for error in errors if error.startswith("tcp_tf: ")]) == 1
    assert message in errors[-1]
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_results_have_names_of_their_own() -> None:
    files = [Path(name) for name in ("x/a.png", "x/a.jpg", "y/a.png", "y/b.png")]
    assert cli_files.unique_names(files) == ["a.png", "a.jpg", "a.png-2", "b"]


def test_the_module_is_the_program(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tcp_tf", "swap", "--model", tiny_run, "--content", folder / "photos" / "a.png"]
    command += ["--style", folder / "looks" / "cup.png", "--output", tmp_path / "out.png"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out.png").size == (72, 60)


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    helped = capsys.readouterr().out
    assert all(word in helped for word in ("edit", "swap", "interpolate", "grid", "encode", "app"))


def test_the_page_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tcp_tf.app", None)
    monkeypatch.delattr(tcp_tf, "app", raising=False)
    assert cli.main(["app", "--model", "runs/quickstart"]) == 2
    assert "needs the extra `app`" in capsys.readouterr().err
