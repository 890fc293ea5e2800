"""Who may know whom: the imports of every file, read with `ast`, against the table of rooms.

The table is the diagram of the project. A room is a module of `tcp_tf` or one of its packages, `export`, or the
command line `train`. An import that the table lacks fails here; move the wall on purpose or not at all.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

NETWORKS = {"encoder", "generator", "discriminators"}
MAY_IMPORT: dict[str, set[str]] = {
    # every knob; the only room that reads YAML
    "config": set(),
    # networks, from tensor arithmetic upwards; they take scalars, not configurations
    "target": set(),
    "ops": {"target"},
    "winograd": {"ops", "target"},
    "gradients": {"ops", "target", "winograd"},
    "layers": {"gradients", "ops", "winograd"},
    "encoder": {"ops", "layers"},
    "generator": {"ops", "layers"},
    "discriminators": {"ops", "layers", "target"},
    "masks": {"ops"},
    "blending": {"ops", "layers", "encoder", "generator"},
    # an encoder and a generator at work: all that is left of the model when it is trained
    "autoencoder": {"config", "ops", "layers", "blending", "encoder", "generator"},
    # training's arithmetic: values per example, then weights and replicas, then random draws
    "losses": {"ops"},
    "parts": {"ops"},
    "objective": {"config", "losses", "ops", "parts"},
    "guards": set(),
    "draws": {"config", "masks", "generator"},
    "optimizers": {"config"},
    "critics": {"config", "ops", "target", "discriminators", "gradients", "losses", "objective", "parts"},
    "model": {"config", "ops", "target", "autoencoder", "blending", "critics", "draws", "encoder", "guards", "losses"}
    | {"objective", "optimizers", "parts"},
    # bytes to images
    "images": set(),
    "folder": {"images"},
    "datasets": set(),
    "sources": {"config", "datasets", "folder", "images"},
    "data": {"config", "images", "sources"},
    # judging
    "metrics": set(),
    "distances": {"metrics"},
    "colour_transfer": set(),
    "inception": set(),
    "scene_truth": {"datasets", "distances"},
    "pairs": {"config", "data", "datasets", "masks", "sources"},
    "answers": {"autoencoder", "colour_transfer", "pairs"},
    "measures": {"answers", "distances", "inception", "metrics", "pairs", "scene_truth"},
    "evaluate": {"allocator", "autoencoder", "config", "run_dir", "sources", "answers", "inception", "measures"}
    | {"metrics", "pairs"},
    # what a training leaves behind
    "allocator": set(),
    "onednn": set(),
    "checkpoints": set(),
    "run_dir": {"config", "autoencoder", "checkpoints"},
    # the host's side of training
    "callbacks": {"config", "autoencoder", "blending", "data", "images", "masks", "model", "ops"}
    | {"checkpoints", "guards", "objective"},
    "workers": set(),
    "training": {"config", "callbacks", "checkpoints", "data", "evaluate", "guards", "model", "run_dir", "sources"}
    | {"optimizers", "workers"},
    "publish": {"allocator", "config", "evaluate", "run_dir"},
    # the official checkpoints
    "torch_file": set(),
    "official_names": {"layers"} | NETWORKS,
    "official_sizes": {"config", "official_names", "encoder", "generator", "discriminators"},
    "convert_official": {"config", "autoencoder", "critics", "model", "official_names", "official_sizes", "run_dir"}
    | {"torch_file"},
    # what a person does with a trained model
    "pictures": {"images"},
    "moving": {"pictures"},
    "styles": {"pictures"},
    "directions": {"pictures", "styles"},
    "compositing": set(),
    "tiling": {"autoencoder", "blending", "encoder", "generator", "ops"},
    "exported": {"config", "autoencoder"},
    "agreement": {"autoencoder", "datasets", "metrics", "sources"},
    "editor": {"config", "autoencoder", "encoder", "images", "run_dir"}
    | {"compositing", "exported", "pictures", "styles", "tiling"},
    "cli_arguments": {"config"},
    "cli_files": {"images"},
    "cli": {"allocator", "app", "cli_arguments", "cli_files", "editor", "images", "moving", "pictures", "styles"},
    "__main__": {"cli"},
    "app_strokes": set(),
    "app_session": {"allocator", "app_strokes", "editor", "images"},
    "app_samples": {"app_session", "datasets", "images"},
    "app_handlers": {"app_session", "app_strokes"},
    "app_page": {"app_handlers", "app_session", "images"},
    "app_guard": set(),
    "app": {"app_guard", "app_handlers", "app_page", "app_samples", "app_session", "app_strokes", "editor"}
    | {"config"},
    # outside the package
    "export": {"config", "agreement", "autoencoder", "blending", "images", "ops", "run_dir"},
    "train": {"allocator", "config", "callbacks", "onednn", "training", "workers"},
    "benchmarks": {"allocator", "config", "data", "sources", "ops", "autoencoder", "model", "training"}
    | {"answers", "blending", "checkpoints", "evaluate", "measures", "metrics", "pairs", "publish", "run_dir"}
    | {"critics", "discriminators", "official_names", "images", "pictures", "onednn", "target", "winograd", "export"},
}

# Libraries that a room must do without: config is judged before TensorFlow is loaded, arithmetic has no layers.
MUST_NOT_IMPORT: dict[str, set[str]] = {
    "config": {"tensorflow", "keras", "numpy"},
    "images": {"tensorflow", "keras"},
    "pictures": {"tensorflow", "keras"},
    "styles": {"tensorflow", "keras"},
    "directions": {"tensorflow", "keras"},
    "folder": {"tensorflow", "keras"},
    "torch_file": {"tensorflow", "keras", "torch"},
    **{
        room: {"keras"}
        for room in ("ops", "masks", "losses", "parts", "objective", "draws", "blending", "data", "sources")
    },
}

DISTRIBUTION = {
    "PIL": "pillow",
    "apache_beam": "apache-beam",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "grpc": "grpcio",
    "skimage": "scikit-image",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_serving": "tensorflow-serving-api",
    "yaml": "pyyaml",
}


def room_of(file: Path) -> str:
    """`tcp_tf/ops.py` -> ops, `tcp_tf/datasets/scenes.py` -> datasets, `export/server.py` -> export."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "tcp_tf" else parts[0]


def source_files() -> list[Path]:
    files = [file for folder in ("tcp_tf", "export", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]
    return [*files, *(file for file in [ROOT / "train.py"] if file.exists())]


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever the import stands; `package` resolves relative ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from tcp_tf import ops` names the room only after the import
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "tcp_tf" else [module]


def imports_of(file: Path) -> Iterator[str]:
    package = ".".join(file.relative_to(ROOT).parent.parts)
    return imported_modules(file.read_text(encoding="utf-8"), package)


def rooms_imported(file: Path) -> set[str]:
    rooms = set()
    for module in imports_of(file):
        parts = module.split(".")
        if parts[0] == "tcp_tf" and len(parts) > 1 and not parts[1].startswith("__"):
            rooms.add(parts[1])
        elif parts[0] in ("export", "train", "benchmarks"):
            rooms.add(parts[0])
    return rooms - {room_of(file)}


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_are_in_the_table(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        assert rooms_imported(file) == set(), "importing tcp_tf alone must stay light"
        return
    assert room in MAY_IMPORT, f"{file.relative_to(ROOT)} has no room: say in MAY_IMPORT what it may know"
    assert rooms_imported(file) <= MAY_IMPORT[room], f"{room} must not know {rooms_imported(file) - MAY_IMPORT[room]}"
    libraries = {module.split(".")[0] for module in imports_of(file)}
    assert not libraries & MUST_NOT_IMPORT.get(room, set())


def test_the_table_points_one_way() -> None:
    left = {room: set(known) for room, known in MAY_IMPORT.items()}
    while left:
        free = [room for room, known in left.items() if not known & set(left)]
        assert free, f"rooms that know each other in a circle: {sorted(left)}"
        for room in free:
            del left[room]


def test_the_table_names_only_rooms() -> None:
    known = set().union(*MAY_IMPORT.values()) | set(MUST_NOT_IMPORT)
    assert known <= set(MAY_IMPORT)


def test_training_is_out_of_reach_of_what_is_served() -> None:
    reached, new = set(), {"export", "editor", "autoencoder"}
    while new:
        reached |= new
        new = set().union(*(MAY_IMPORT[room] for room in new)) - reached
    assert not reached & {"losses", "objective", "draws", "model", "callbacks", "discriminators", "data", "train"}


@pytest.mark.skipif(sys.version_info < (3, 10), reason="the list of standard modules came with Python 3.10")
def test_every_library_is_in_the_requirements() -> None:
    names = re.findall(r'^\s*"?([A-Za-z][\w.-]*)(?=[<>=~!])', (ROOT / "requirements.txt").read_text(), re.M)
    extras = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.S)
    assert extras is not None
    names += re.findall(r'^\s*"([A-Za-z][\w.-]*)(?=[<>=~!])', extras[1], re.M)
    declared = {name.lower() for name in names}
    for file in source_files():
        for module in imports_of(file):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in ("tcp_tf", "export", "train", "benchmarks"):
                assert DISTRIBUTION.get(top, top).lower() in declared, f"{file.relative_to(ROOT)} imports {top}"


def test_the_reader_of_imports_sees_every_form() -> None:
    source = "import tcp_tf.ops as o\nfrom tcp_tf import masks, losses\ndef f():\n    from .layers import Conv\n"
    source += "from tcp_tf.datasets.scenes import Scenes\nfrom . import config\nimport tensorflow.experimental\n"
    assert set(imported_modules(source, "tcp_tf")) == {
        *("tcp_tf.ops", "tcp_tf.masks", "tcp_tf.losses", "tcp_tf.layers", "tcp_tf.datasets.scenes", "tcp_tf.config"),
        "tensorflow.experimental",
    }
