"""What a command line means by its files: which pictures are read, and where each result goes."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tcp_tf import images


class UsageError(ValueError):
    """A command line that cannot be carried out; one line that says why."""


def expand(arguments: Sequence[str]) -> list[Path]:
    """Files, the pictures in folders, and what patterns match; sorted within each argument.

    Raises:
        UsageError: an argument stands for nothing.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in images.SUFFIXES)
            if not inside:
                raise UsageError(f"{argument}: no picture in this folder ({', '.join(images.SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
            matches = [match for match in matches if match.is_file()]
            if not matches:
                raise UsageError(f"{argument}: there is no such file or folder")
            found += matches
    return list(dict.fromkeys(found))


def targets(
    files: Sequence[Path], arguments: Sequence[str], output: Path, suffix: Optional[str] = None
) -> list[tuple[Path, Path]]:
    """(file, result) for every file: the result is `output` where one file was named, else a file in that folder.

    Args:
        files: what `expand` made of `arguments`.
        suffix: of the results; default any picture's, and .png in a folder.
    Raises:
        UsageError: several results for one file, an ending that is not written, or a result that would replace a
            picture that is read.
    """
    one = len(arguments) == 1 and Path(arguments[0]).is_file()
    if one and output.suffix and not output.is_dir():
        if suffix is None:
            check_suffix(output)
        elif output.suffix.lower() != suffix:
            raise UsageError(f"{output}: must end in {suffix}")
        pairs = [(files[0], output)]
    else:
        if output.is_file() or output.suffix.lower() in (*images.SUFFIXES, ".npz"):
            raise UsageError(f"{output}: several pictures need a folder as --output")
        pairs = [(file, output / f"{name}{suffix or '.png'}") for file, name in zip(files, unique_names(files))]
    read = {file.resolve() for file in files}
    for _, target in pairs:
        if target.resolve() in read:
            raise UsageError(f"{target}: would replace a picture that is read; choose another --output")
    return pairs


def unique_names(files: Sequence[Path]) -> list[str]:
    """A name for each file: without the ending where that is unique, else with it, else numbered."""
    stems, names = [file.stem for file in files], list[str]()
    for file in files:
        name = plain = file.stem if stems.count(file.stem) == 1 else file.name
        number = 2
        while name in names:
            name, number = f"{plain}-{number}", number + 1
        names.append(name)
    return names


def check_suffix(output: Path) -> None:
    """Raises UsageError unless the ending is that of a picture."""
    if output.suffix.lower() not in images.SUFFIXES:
        raise UsageError(f"{output}: pictures are written as one of {', '.join(images.SUFFIXES)}")


def check_files(files: Sequence[str]) -> None:
    """Raises UsageError for the first that does not exist."""
    for file in files:
        if not Path(file).is_file():
            raise UsageError(f"{file}: there is no such file")


def mask_of(file: Path, mask: str) -> Path:
    """The mask itself; where it is a folder, the one in it that has the picture's name.

    Raises:
        UsageError: the folder has none.
    """
    path = Path(mask)
    if not path.is_dir():
        return path
    entries = [entry for entry in sorted(path.iterdir()) if entry.suffix.lower() in images.SUFFIXES]
    fitting = [entry for entry in entries if entry.stem == file.stem]
    if not fitting:
        raise UsageError(f"{file}: no mask of this name in {mask}")
    return fitting[0]
