"""Edits a photograph region by region, as a program would.

    python examples/edit_a_photograph.py --model runs/quickstart --image photo.jpg --sky sky.png \
        --look sunset.jpg --output edited

`sky.png` is white where the sky is. Written are the edit at four strengths, the same with a soft edge, and a strip that
leads from the photograph to the look.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tcp_tf import Editor, Region
from tcp_tf.pictures import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "image", "sky", "look", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    options = parser.parse_args()

    editor = Editor.load(options.model)
    picture = editor.open(options.image)  # encoded once
    look = editor.encode_style(options.look)  # and so is the look

    for strength in (0.25, 0.5, 0.75, 1.0):
        edited = picture.edit([Region(options.sky, look, strength)], preserve_background=True)
        save(edited, options.output / f"sky-{round(100 * strength)}.png")

    soft = picture.edit([Region(options.sky, look, feather=0.02 * min(picture.size))], preserve_background=True)
    save(soft, options.output / "sky-soft.png")

    for number, frame in enumerate(picture.interpolate([look], steps=6)):
        save(frame, options.output / f"whole-{number}.png")
    print(f"written to {options.output}/")


if __name__ == "__main__":
    main()
