"""The program `tcp_tf`: carries out what `cli_arguments` has read, one function per command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np
from PIL import Image
from tqdm import tqdm

from tcp_tf import cli_arguments, cli_files, images, moving, pictures
from tcp_tf.styles import StyleError, StyleLibrary

BAD = 2  # exit code: what was asked cannot be done, or not for every picture
GAP = 4  # pixels between the cells of a grid


def command() -> None:
    """The program: runs and exits."""
    from tcp_tf import allocator

    allocator.tune()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main())


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command. Returns the exit code: 0 all done, 2 something could not be done (it has been named)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["app"]:
        return _app(arguments[1:])
    options = cli_arguments.parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except (ValueError, OSError) as error:
        return _complain(error)
    except KeyboardInterrupt:
        print("\ntcp_tf: stopped; pictures already written are whole", file=sys.stderr)
        return 130


def _edit(options: argparse.Namespace) -> int:
    strengths = options.strength or [1.0]
    count = len(options.mask)
    for name, values in (("--style", options.style), ("--strength", strengths)):
        if len(values) not in (1, count):
            raise cli_files.UsageError(
                f"{len(values)} times {name} for {count} times --mask; one for all or one for each is wanted"
            )
    for strength in strengths:
        if not 0.0 <= strength <= 1.0:
            raise cli_files.UsageError(f"--strength must be in [0, 1], got {strength}")
    if not options.feather >= 0.0:
        raise cli_files.UsageError(f"--feather must be 0 pixels or more, got {options.feather}")
    files = cli_files.expand(options.image)
    targets = cli_files.targets(files, options.image, options.output)
    cli_files.check_files([mask for mask in options.mask if not Path(mask).is_dir()])
    editor, region = _editor(options)
    styles = _spread([_style(editor, style) for style in options.style], count)

    def edited(file: Path) -> Image.Image:
        masks = [cli_files.mask_of(file, mask) for mask in options.mask]
        regions = [region(*values, options.feather) for values in zip(masks, styles, _spread(strengths, count))]
        return editor.edit(file, regions, options.preserve_background)

    return _each(targets, edited)


def _swap(options: argparse.Namespace) -> int:
    files = cli_files.expand(options.content)
    targets = cli_files.targets(files, options.content, options.output)
    editor, _ = _editor(options)
    style = _style(editor, options.style)
    return _each(targets, lambda file: editor.swap(file, style))


def _interpolate(options: argparse.Namespace) -> int:
    from tcp_tf.styles import path_through

    if options.steps < 2:
        raise cli_files.UsageError(f"--steps must be at least 2, got {options.steps}")
    if not options.fps > 0.0:
        raise cli_files.UsageError(f"--fps must be more than 0, got {options.fps}")
    suffix, output = options.output.suffix.lower(), options.output
    if suffix in moving.SUFFIXES:
        moving.check(output)
    elif suffix:
        cli_files.check_suffix(output)
    editor, region = _editor(options)
    styles = [_style(editor, style) for style in options.style]
    picture = editor.open(options.image)
    mask = None if options.mask is None else pictures.read_mask(options.mask, picture.size)
    looks = path_through([picture.style, *styles] if len(styles) == 1 else styles, options.steps)
    looks = [*looks, *looks[-2:0:-1]] if options.bounce else looks
    frames = []
    for look in tqdm(looks, unit="picture", disable=None):
        if mask is None:
            frames.append(picture.swap(look))
        else:
            frames.append(picture.edit([region(mask, look, 1.0, options.feather)], options.preserve_background))
    if suffix in moving.SUFFIXES:
        moving.save(frames, output, options.fps)
    elif suffix:
        pictures.save(_strip(frames), output)
    else:
        digits = len(str(len(frames)))
        for number, frame in enumerate(frames):
            pictures.save(frame, output / f"{number:0{digits}}.png")
    return 0


def _grid(options: argparse.Namespace) -> int:
    if options.cell < 8:
        raise cli_files.UsageError(f"--cell must be at least 8 pixels, got {options.cell}")
    cli_files.check_suffix(options.output)
    contents, looks = cli_files.expand(options.content), cli_files.expand(options.style)
    editor, _ = _editor(options)
    failed = 0

    def usable(files: list[Path], read: Callable[[Path], Any]) -> list[tuple[Path, Any]]:
        nonlocal failed
        found = []
        for file in files:
            try:
                found.append((file, read(file)))
            except ValueError as error:
                failed = _complain(error)
        return found

    columns = usable(looks, editor.encode_style)
    rows = usable(contents, editor.open)
    if not rows or not columns:
        raise cli_files.UsageError("nothing is left to draw")
    cell, step = options.cell, options.cell + GAP
    sheet = Image.new("RGB", (step * (len(columns) + 1) - GAP, step * (len(rows) + 1) - GAP), "white")
    for column, (file, _) in enumerate(columns, start=1):
        sheet.paste(_fitted(images.to_rgb(images.load(file.read_bytes())), cell), (column * step, 0))
    with tqdm(total=len(rows) * len(columns), unit="picture", disable=None) as progress:
        for row, (_, picture) in enumerate(rows, start=1):
            sheet.paste(_fitted(images.to_rgb(picture.image), cell), (0, row * step))
            for column, (_, style) in enumerate(columns, start=1):
                sheet.paste(_fitted(images.to_rgb(picture.swap(style)), cell), (column * step, row * step))
                progress.update()
    pictures.save(sheet, options.output)
    return failed


def _encode(options: argparse.Namespace) -> int:
    files = cli_files.expand(options.image)
    target = options.library or options.output
    if options.library is not None and target.suffix.lower() != ".npz":
        raise cli_files.UsageError(f"--library: {target} must end in .npz")
    if options.library is None:
        targets = cli_files.targets(files, options.image, target, ".npz")
    else:
        targets = [(file, Path(name)) for file, name in zip(files, cli_files.unique_names(files))]
    editor, _ = _editor(options)
    styles: dict[str, np.ndarray] = {}

    def written(file: Path, path: Path) -> None:
        if options.library is not None:
            styles[str(path)] = editor.encode_style(file)
            return
        picture = editor.open(file)
        size = np.array(picture.size)
        values = {"content": picture.codes.content, "style": picture.style, "size": size}
        pictures.write(path, lambda opened: np.savez(opened, **values))

    failed = _each(targets, written=written)
    if options.library is not None and styles:
        StyleLibrary(tuple(styles), np.stack(list(styles.values()))).save(options.library)
    return failed


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "edit": _edit,
    "swap": _swap,
    "interpolate": _interpolate,
    "grid": _grid,
    "encode": _encode,
}


def _app(arguments: list[str]) -> int:
    try:
        from tcp_tf import app

        return int(app.main(arguments))
    except ImportError as error:
        return _complain(f"the web page needs the extra `app` (pip install 'tcp_tf[app]'): {error}")


def _each(
    targets: Sequence[tuple[Path, Path]],
    made: Optional[Callable[[Path], Image.Image]] = None,
    written: Optional[Callable[[Path, Path], None]] = None,
) -> int:
    """Makes and saves one result per file. What cannot be done is named, and the rest goes on."""
    failed = 0
    for file, target in tqdm(targets, unit="picture", disable=True if len(targets) == 1 else None):
        try:
            if written is not None:
                written(file, target)
            elif made is not None:
                pictures.save(made(file), target)
        except (ValueError, OSError) as error:
            failed = _complain(error)
    return failed


def _complain(error: Union[Exception, str]) -> int:
    tqdm.write(f"tcp_tf: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD


def _editor(options: argparse.Namespace) -> tuple[Any, Any]:
    """The editor and the class of regions; TensorFlow only starts here, once the command line is known to be good."""
    if not Path(options.model).is_dir():
        raise cli_files.UsageError(f"--model: {options.model}: there is no such directory")
    from tcp_tf import editor

    return editor.Editor.load(options.model, options.tile, options.work_size, options.precision), editor.Region


def _style(editor: Any, argument: str) -> np.ndarray:
    """A style from a picture, from `encode`'s .npz, or from LIBRARY.npz:NAME."""
    file, colon, name = argument.rpartition(":")
    if colon and file.lower().endswith(".npz"):
        library = StyleLibrary.load(file)
        if name not in library.names:
            raise cli_files.UsageError(
                f"{argument}: the library has no style {name!r}, it has {', '.join(library.names)}"
            )
        return editor.encode_style(library.styles[library.names.index(name)])
    if argument.lower().endswith(".npz"):
        try:
            with np.load(argument, allow_pickle=False) as codes:
                return editor.encode_style(codes["style"])
        except KeyError:
            raise cli_files.UsageError(
                f"{argument}: has no style; a library's are named like {argument}:NAME"
            ) from None
        except (OSError, ValueError) as error:
            raise StyleError(f"{argument}: holds no style: {error}") from None
    return editor.encode_style(argument)


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    return list(values) * count if len(values) == 1 else list(values)


def _fitted(pixels: np.ndarray, side: int) -> Image.Image:
    """The whole picture in a square cell, on grey: uint8 `[H, W, 3]`."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    small = images.resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
    cell = Image.new("RGB", (side, side), (224, 224, 224))
    cell.paste(Image.fromarray(small), ((side - small.shape[1]) // 2, (side - small.shape[0]) // 2))
    return cell


def _strip(frames: Sequence[Image.Image]) -> Image.Image:
    """Frames side by side."""
    width, height = frames[0].size
    strip = Image.new(frames[0].mode, (width * len(frames), height))
    for number, frame in enumerate(frames):
        strip.paste(frame, (number * width, 0))
    if "icc_profile" in frames[0].info:
        strip.info["icc_profile"] = frames[0].info["icc_profile"]
    return strip
