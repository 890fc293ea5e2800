"""Edits pictures with a trained model.

    tcp_tf edit --model RUN --image photo.jpg --mask sky.png --style sunset.jpg --preserve-background --output new.png
    tcp_tf swap --model RUN --content 'holiday/*.jpg' --style sunset.jpg --output edited/
    tcp_tf interpolate --model RUN --image photo.jpg --style dawn.jpg --style night.jpg --output day.gif
    tcp_tf grid --model RUN --content photos/ --style looks/ --output grid.png
    tcp_tf encode --model RUN --image looks/ --library looks.npz
    tcp_tf app --model RUN

A style is a picture, an .npz file that `encode` wrote, or LIBRARY.npz:NAME.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Union

from tcp_tf.config import PRECISIONS


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` says which one was given."""
    program = argparse.ArgumentParser(
        prog="tcp_tf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    many = "files, folders or quoted patterns"

    def add(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.add_argument("--model", required=True, metavar="PATH", help="run directory or exported SavedModel")
        added.add_argument(
            "--work-size", type=_work_size, default="auto", metavar="PX",
            help="short side at which the networks work, or 'full'; default: the picture's own, or the training "
            "pictures' where it is more than 1.5 times as large",
        )  # fmt: skip
        added.add_argument(
            "--tile", type=int, default=1024, metavar="PX", help="what the networks see at a time (%(default)s)"
        )
        added.add_argument(
            "--precision", choices=PRECISIONS, default="float32",
            help="the networks' arithmetic; mixed_bfloat16 is the faster one where the processor has it (%(default)s)",
        )  # fmt: skip
        return added

    def add_regions(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--feather", type=float, default=0.0, metavar="PX", help="soften the masks' edges by so many pixels"
        )
        to.add_argument("--preserve-background", action="store_true", help="keep every pixel outside the masks exactly")

    edit = add("edit", "give regions of a picture other looks")
    edit.add_argument("--image", nargs="+", required=True, metavar="A", help=many)
    edit.add_argument(
        "--style", action="append", required=True, metavar="B", help="one per --mask, in order; or one for all"
    )
    edit.add_argument(
        "--mask", action="append", required=True, metavar="M",
        help="white where the style goes; a folder holds a mask per image, of the same name; may be repeated",
    )  # fmt: skip
    edit.add_argument(
        "--strength", type=float, action="append", metavar="S", help="0 to 1, one for all masks or one for each (1)"
    )
    add_regions(edit)
    edit.add_argument(
        "--output", type=Path, required=True, metavar="OUT", help="a picture; a folder for several images"
    )

    swap = add("swap", "give whole pictures another look")
    swap.add_argument("--content", nargs="+", required=True, metavar="A", help=many)
    swap.add_argument("--style", required=True, metavar="B")
    swap.add_argument("--output", type=Path, required=True, metavar="OUT", help="a picture; a folder for several")

    between = add("interpolate", "lead a picture through several looks")
    between.add_argument("--image", required=True, metavar="A")
    between.add_argument("--style", action="append", required=True, metavar="B", help="one starts at the picture's own")
    between.add_argument("--mask", metavar="M", help="only here")
    add_regions(between)
    between.add_argument("--steps", type=int, default=24, help="pictures, ends included (%(default)s)")
    between.add_argument("--fps", type=float, default=12.0, help="pictures per second of a GIF or MP4 (%(default)s)")
    between.add_argument("--bounce", action="store_true", help="there and back again")
    between.add_argument(
        "--output", type=Path, required=True, metavar="OUT",
        help=".gif, .mp4, another picture for a strip, or a folder for single pictures",
    )  # fmt: skip

    grid = add("grid", "every content in every style, as one picture")
    grid.add_argument("--content", nargs="+", required=True, metavar="A", help=many)
    grid.add_argument("--style", nargs="+", required=True, metavar="B", help=many)
    grid.add_argument("--cell", type=int, default=192, metavar="PX", help="side of a cell (%(default)s)")
    grid.add_argument("--output", type=Path, required=True, metavar="OUT", help="a picture")

    encode = add("encode", "write pictures' codes")
    encode.add_argument("--image", nargs="+", required=True, metavar="A", help=many)
    target = encode.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--output", type=Path, metavar="OUT", help="content and style: one .npz, or a folder for several"
    )
    target.add_argument("--library", type=Path, metavar="OUT", help="all styles with their names, in one .npz")

    commands.add_parser("app", help="the web page (needs the extra `app`)", add_help=False)
    return program


def _work_size(text: str) -> Union[int, str]:
    if text in ("auto", "full"):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of pixels, 'auto' or 'full', got {text!r}")
    return int(text)
