"""Editing: any picture in, the same size out, the background untouched, large pictures in tiles."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageCms
from skimage import data as photographs
from small import enliven, small_config

from tcp_tf import blending, compositing, directions, pictures, styles, tiling
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.editor import Editor, Picture, Region

MODES = ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"]


def photo(width: int = 30, height: int = 22) -> Image.Image:
    return Image.fromarray(photographs.astronaut()).resize((width, height), Image.Resampling.BICUBIC)


def look() -> np.ndarray:
    return np.asarray(Image.fromarray(photographs.coffee()).resize((24, 16), Image.Resampling.BICUBIC))


def rectangle(width: int = 30, height: int = 22) -> np.ndarray:
    mask = np.zeros((height, width), np.float32)
    mask[height // 4 : height // 2, width // 4 : 3 * width // 4] = 1.0
    return mask


def make(strategy: str = "style_map", precision: str = "float32", **options: Any) -> Editor:
    config = small_config(f"blend.strategy={strategy}")
    autoencoder = AutoEncoder.from_config(config)
    enliven(autoencoder.encoder, autoencoder.generator)
    return Editor(autoencoder.folded(config, precision), config, **options)


@pytest.fixture(scope="module")
def editor() -> Editor:
    return make()


def test_any_size_and_shape(editor: Editor) -> None:
    for width, height in [(16, 16), (17, 23), (5, 9), (1, 1), (16, 100), (61, 40)]:
        image, mask = photo(width, height), Image.new("L", (7, 7), 255)
        for preserved in (False, True):
            assert editor.masked_blend(image, look(), mask, preserve_background=preserved).size == (width, height)
        assert editor.swap(image, look()).size == (width, height)


@pytest.mark.parametrize("strategy", blending.STRATEGIES)
def test_an_edit_is_the_models(strategy: str) -> None:
    editor = make(strategy)
    autoencoder = editor.networks.autoencoder
    image, masks = np.asarray(photo(21, 17)), np.stack([rectangle(21, 17), rectangle(21, 17)[::-1]])
    other = np.asarray(photo(16, 24))
    edited = np.asarray(editor.edit(image, [Region(masks[0], look(), 0.7), Region(masks[1], other, 0.7)]))
    looks = np.stack([editor.encode_style(look()), editor.encode_style(other)])
    expected = autoencoder.blend_codes(
        tf.constant(np.pad(image, [(0, 1), (0, 1), (0, 0)], mode="reflect")[None] / np.float32(127.5) - 1.0),
        tf.constant(looks[None]),
        tf.constant(np.pad(masks, [(0, 0), (0, 1), (0, 1)], mode="reflect")[None, ..., None]),
        tf.constant([0.7]),
    )[0, :17, :21].numpy()
    levels = np.rint(np.clip((expected + 1.0) * 127.5, 0, 255))
    assert np.abs(levels - edited).max() <= 1
    assert np.mean(levels == edited) > 0.99
    assert np.std(edited) > 10


@pytest.mark.parametrize("strategy", blending.STRATEGIES)
def test_bfloat16_gives_nearly_the_same_edits(strategy: str) -> None:
    exact, coarse = make(strategy), make(strategy, "mixed_bfloat16")
    regions = [Region(rectangle(), look(), 0.7), Region(1.0 - rectangle(), photo())]
    edits = [np.asarray(editor.edit(photo(), regions), np.float32) for editor in (exact, coarse)]
    assert 0.0 < np.sqrt(np.mean((edits[1] - edits[0]) ** 2)) < 2.5  # of 255 levels: 40 dB


def test_the_file_is_that_of_the_served_model(tiny_run: Path, tiny_export: Path, tmp_path: Path) -> None:
    ours, exported = Editor.load(tiny_run), Editor.load(tiny_export)
    assert Editor.load(tiny_export / "1").resolution == exported.resolution == 64
    for mine, theirs in (
        (ours.networks.autoencoder.encoder, exported.networks.autoencoder.encoder),
        (ours.networks.autoencoder.generator, exported.networks.autoencoder.generator),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(mine.get_weights(), theirs.get_weights()))
    image, mask = photo(81, 70), Image.fromarray(np.uint8(rectangle(81, 70) * 200))
    style = Image.fromarray(photographs.coffee()).resize((90, 77))
    mine = np.asarray(exported.masked_blend(image, style, mask, 0.6))

    def file(picture: Image.Image) -> tf.Tensor:
        written = io.BytesIO()
        picture.save(written, format="PNG")
        return tf.constant([written.getvalue()])

    model = tf.saved_model.load(str(tiny_export / "1"))
    answer = model.signatures["masked_blend_bytes"](
        image_bytes=file(image), style_image_bytes=file(style), mask_bytes=file(mask), strength=tf.constant([0.6])
    )
    served = np.asarray(Image.open(io.BytesIO(answer["image_bytes"].numpy()[0])))
    # A value that falls within rounding of half a level may go either way in another graph.
    assert np.abs(served.astype(int) - mine).max() <= 1
    assert np.mean(served == mine) > 0.999


@pytest.mark.parametrize("mode", MODES)
def test_modes(editor: Editor, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)
    else:
        image = photo().convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    edited = editor.masked_blend(image, look(), rectangle(), preserve_background=True)
    assert edited.mode == ("RGBA" if mode in ("RGBA", "LA") else "RGB")
    assert edited.size == image.size
    if mode in ("RGBA", "LA"):
        assert np.array_equal(np.asarray(edited)[..., 3], np.asarray(image)[..., -1])
    outside = rectangle() == 0
    expected = (
        np.asarray(image.convert(edited.mode)) if mode != "I;16" else np.asarray(photo().convert("L").convert("RGB"))
    )
    assert np.array_equal(np.asarray(edited)[outside], expected[outside])


def test_arrays_are_pictures(editor: Editor) -> None:
    levels = np.asarray(photo())
    expected = np.asarray(editor.swap(levels, look()))
    assert np.array_equal(np.asarray(editor.swap(levels / 255.0, look())), expected)
    assert np.array_equal(np.asarray(editor.swap(photo(), look() / np.float32(255))), expected)


def test_a_turned_photograph(editor: Editor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right by 90 degrees
    photo().save(tmp_path / "turned.png", exif=exif)
    upright = photo().transpose(Image.Transpose.ROTATE_270)
    mask = rectangle(22, 30)
    edited = editor.masked_blend(tmp_path / "turned.png", look(), mask, preserve_background=True)
    assert edited.size == (22, 30)
    assert np.array_equal(
        np.asarray(edited), np.asarray(editor.masked_blend(upright, look(), mask, preserve_background=True))
    )
    pictures.save(edited, tmp_path / "again.png")
    assert Image.open(tmp_path / "again.png").getexif().get(0x0112) is None
    assert np.array_equal(pictures.read(tmp_path / "again.png").pixels, np.asarray(edited))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_the_colour_profile_is_kept(editor: Editor, tmp_path: Path, ending: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo().save(tmp_path / "in.png", icc_profile=profile)
    pictures.save(editor.swap(tmp_path / "in.png", look()), tmp_path / f"out.{ending}")
    assert Image.open(tmp_path / f"out.{ending}").info["icc_profile"] == profile
    grey = photo().convert("L")
    grey.info["icc_profile"] = profile[:16] + b"GRAY" + profile[20:]
    assert "icc_profile" not in editor.swap(grey, look()).info, "a profile of greys does not fit a picture in colour"


@pytest.mark.parametrize("size", [(30, 22), (9, 11), (90, 66)], ids=["native", "enlarged", "reduced"])
def test_outside_the_mask_nothing_changes(editor: Editor, size: tuple[int, int]) -> None:
    if size == (30, 22):
        assert editor.work_shape((22, 30), "auto") == (22, 30)
    image, mask = photo(*size).convert("RGBA"), rectangle(*size)
    hidden = np.asarray(image).copy()
    hidden[:3, :, 3] = 0  # fully transparent, with colours under it
    picture = editor.open(hidden)
    assert picture.reduced == (size == (90, 66))
    for feather in (0.0, 3.0):
        edited = np.asarray(picture.edit([Region(mask, look(), 1.0, feather)], preserve_background=True))
        outside = compositing.feather(mask, feather) == 0
        assert outside.any()
        assert np.array_equal(edited[outside], hidden[outside])
        inside = (mask > 0) & (hidden[..., 3] > 0)
        assert np.mean(edited[inside][:, :3] != hidden[inside][:, :3]) > 0.3
    empty = picture.edit([Region(np.zeros_like(mask), look())], preserve_background=True)
    assert np.array_equal(np.asarray(empty), hidden)
    without = picture.edit([Region(mask, look(), 0.0)], preserve_background=True)
    assert np.abs(np.asarray(without).astype(int) - hidden).max() <= 1


def test_where_nothing_is_edited_there_is_no_seam() -> None:
    rng = np.random.default_rng(0)
    original, reconstruction = rng.uniform(-1, 1, (2, 80, 80, 3)).astype(np.float32)
    mask = rectangle(80, 80)
    joined = compositing.seamless(original, reconstruction, reconstruction, mask, mask, 4, 8)
    border = mask - (compositing.box_mean(mask[..., None], 1)[..., 0] > 0.99)
    assert border.sum() > 100
    assert np.abs(joined - original)[border > 0].max() < 0.01
    assert np.allclose(joined[30, 40], reconstruction[30, 40]), "deep inside it is the generator's"
    thin = np.zeros((40, 40), np.float32)
    thin[20] = 1.0
    assert np.array_equal(compositing.ramp(thin, 8), thin), "a thin stroke must not vanish"


def test_a_change_is_enlarged_with_the_pictures_detail() -> None:
    rng = np.random.default_rng(1)
    original = np.clip(np.asarray(photo(240, 160), np.float32) / 127.5 - 1.0, -1, 1)
    guide = np.asarray(photo(30, 20), np.float32) / 127.5 - 1.0
    matrix, offset = rng.uniform(-0.5, 0.5, (3, 3)).astype(np.float32), np.float32([0.3, -0.2, 0.1])
    expected = original @ matrix.T + offset
    for share in (np.ones((20, 30), np.float32), np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)):
        change = share[..., None] * (guide @ matrix.T + offset)
        enlarged = compositing.enlarge(change, guide, share, original)
        assert np.abs(enlarged - expected)[80:].mean() < 0.05
        assert np.corrcoef(enlarged[80:].ravel(), expected[80:].ravel())[0, 1] > 0.98


@pytest.mark.parametrize("strategy", blending.STRATEGIES)
def test_tiles_leave_no_trace(strategy: str) -> None:
    whole, tiled = make(strategy, work_size="full"), make(strategy, work_size="full", tile=40)
    image, mask, style = photo(90, 71), rectangle(90, 71), look()
    first, second = whole.open(image), tiled.open(image)
    assert len(list(tiling.tiles(36, 45, tiled.networks.side, tiled.networks.decode_margin))) > 9
    assert np.abs(first.codes.content - second.codes.content).max() < 1e-5
    assert np.abs(first.style - second.style).max() < 1e-5
    for edit in (
        lambda picture: picture.edit([Region(mask, style)]),
        lambda picture: picture.swap(style),
    ):
        difference = np.abs(np.asarray(edit(first), int) - np.asarray(edit(second), int))
        assert difference.max() <= 1
        assert difference.mean() < 0.05


def test_tiles_cover_once() -> None:
    seen = np.zeros((37, 23), int)
    for tile in tiling.tiles(37, 23, 12, 3):
        seen[tile.core] += 1
        view = seen[tile.seen]
        assert max(view.shape) <= 12
        assert view[tile.kept].shape == seen[tile.core].shape
    assert (seen == 1).all()
    with pytest.raises(ValueError, match="6 positions"):
        list(tiling.tiles(37, 23, 6, 3))


def test_each_region_has_its_strength(editor: Editor) -> None:
    picture, masks = editor.open(photo()), [rectangle(), np.roll(rectangle(), 8, axis=0)]
    strong = picture.edit([Region(masks[0], look(), 0.25), Region(masks[1], look()[::-1], 0.75)])
    soft = picture.edit([Region(0.25 * masks[0], look()), Region(0.75 * masks[1], look()[::-1])])
    assert np.abs(np.asarray(strong, int) - np.asarray(soft, int)).max() <= 1


def test_interpolation_goes_from_end_to_end(editor: Editor) -> None:
    ends = [editor.encode_style(look()), editor.encode_style(photo())]
    frames = editor.interpolate(photo(), ends, 5)
    assert len(frames) == 5
    assert frames[0].tobytes() == editor.swap(photo(), ends[0]).tobytes()
    assert frames[-1].tobytes() == editor.swap(photo(), ends[1]).tobytes()
    steps = [np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() for a, b in zip(frames, frames[1:])]
    assert min(steps) > 0
    own = editor.interpolate(photo(), [ends[0]], 2)
    assert own[0].tobytes() == editor.edit(photo(), []).tobytes(), "one look is approached from the picture's own"


def test_codes_give_the_reconstruction(editor: Editor) -> None:
    codes = editor.encode(photo())
    assert codes.content.shape == (11, 15, editor.config.model.content_dim)
    assert editor.decode(codes.content, codes.style).tobytes() == editor.edit(photo(), []).tobytes()


def test_masks(editor: Editor) -> None:
    level = rectangle()
    strokes = np.zeros((22, 30, 4), np.uint8)  # a layer of black strokes
    strokes[..., 3] = level * 255
    for mask in (level, level > 0, np.uint8(level * 255), Image.fromarray(np.uint8(level * 255)), strokes):
        assert np.array_equal(pictures.read_mask(mask, (30, 22)), level)
    grey = np.full((22, 30), 0.123456, np.float32)
    assert np.array_equal(pictures.read_mask(grey, (30, 22)), grey), "floats keep their precision"
    large = np.repeat(np.repeat(level, 3, axis=0), 3, axis=1)
    assert np.abs(pictures.read_mask(large, (30, 22)) - level).mean() < 0.05
    red = np.zeros((22, 30, 3), np.uint8)
    red[..., 0] = 255
    assert np.allclose(pictures.read_mask(red, (30, 22)), 0.299)


def test_the_working_size(editor: Editor) -> None:
    assert editor.work_shape((24, 40), "auto") == (24, 40)
    assert editor.work_shape((100, 150), "auto") == (16, 24)
    assert editor.work_shape((100, 150), 50) == (50, 75)
    assert editor.work_shape((100, 150), "full") == (100, 150)
    assert editor.work_shape((7, 14), "full") == (14, 28), "the encoder needs seven positions"
    assert isinstance(editor.open(photo(60, 50), 20), Picture)


ERRORS: dict[str, tuple[Any, str]] = {
    "no file": (lambda e: e.swap("nowhere.png", look()), "nowhere.png: No such file"),
    "strength": (lambda e: e.masked_blend(photo(), look(), rectangle(), 1.5), "strength must be in .* got 1.5"),
    "feather": (lambda e: e.masked_blend(photo(), look(), rectangle(), 1.0, -1.0), "feather must be 0 .* got -1.0"),
    "float range": (lambda e: e.swap(np.full((9, 9, 3), 2.0), look()), "image: .* within .0, 1., got 2.0"),
    "NaN": (lambda e: e.masked_blend(photo(), look(), np.full((9, 9), np.nan)), "mask: .* within"),
    "dtype": (lambda e: e.swap(np.zeros((9, 9, 3), np.int64), look()), "int64"),
    "axes": (lambda e: e.swap(np.zeros((9, 9, 5), np.uint8), look()), r"\(9, 9, 5\)"),
    "type": (lambda e: e.swap(7, look()), "got int"),
    "style": (lambda e: e.swap(photo(), np.zeros(5)), r"16 finite numbers, got shape \(5,\)"),
    "mode F": (lambda e: e.swap(Image.new("F", (9, 9)), look()), "mode F"),
    "work size": (lambda e: e.open(photo(), "big"), "work_size must be .* got 'big'"),
    "steps": (lambda e: e.interpolate(photo(), [look()], 1), "steps must be at least 2, got 1"),
    "content": (lambda e: e.decode(np.zeros((3, 3, 99)), np.zeros(16)), r"got \(3, 3, 99\)"),
    "tile": (lambda e: make(tile=8), "tile must be at least 34 px for this model, got 8"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line(editor: Editor, case: str) -> None:
    action, message = ERRORS[case]
    with pytest.raises(ValueError, match=message) as raised:
        action(editor)
    assert "\n" not in str(raised.value)


def test_a_model_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: there is no such directory"):
        Editor.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a run directory .* nor an exported model"):
        Editor.load(tmp_path)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match="not exported by this project"):
        Editor.load(tmp_path)


def test_a_library_of_styles(editor: Editor, tmp_path: Path) -> None:
    library = editor.library({"coffee": look(), "astronaut": photo(), "cat": photographs.chelsea()[::8, ::8]})
    library.save(tmp_path / "looks.npz")
    again = styles.StyleLibrary.load(tmp_path / "looks.npz")
    assert again.names == library.names
    assert np.array_equal(again.styles, library.styles)
    first, second = (editor.random_style(again, np.random.default_rng(seed)) for seed in (1, 2))
    assert np.isclose(np.linalg.norm(first), 1.0, atol=1e-5)
    assert np.linalg.norm(first - second) > 0.01
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(styles.StyleError, match="bad.npz: not a library of styles"):
        styles.StyleLibrary.load(tmp_path / "bad.npz")


def test_directions_find_what_varies(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(12, 12)))[0][:2]
    amounts = rng.normal(size=(200, 2)) * [3.0, 1.0]
    found = directions.find(amounts @ axes + 0.01 * rng.normal(size=(200, 12)), 2)
    assert np.allclose(np.abs(np.sum(found.axes * axes, axis=1)), 1.0, atol=0.01)
    assert found.deviations[0] == pytest.approx(3.0, rel=0.2)
    assert found.explained.sum() > 0.99
    found.save(tmp_path / "sliders.npz")
    again = directions.Directions.load(tmp_path / "sliders.npz")
    style = styles.normalized(rng.normal(size=12))
    moved = again.move(style, [2.0])
    assert np.isclose(np.linalg.norm(moved), 1.0, atol=1e-5)
    assert (moved - style) @ found.axes[0] > 0
    with pytest.raises(styles.StyleError, match="2 directions, got 3"):
        again.move(style, [1.0, 1.0, 1.0])


def test_importing_the_package_is_light() -> None:
    script = "import sys, json, tcp_tf; light = 'tensorflow' not in sys.modules; "
    script += "print(json.dumps([light, tcp_tf.Editor.__name__, tcp_tf.Region.__name__]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, "Editor", "Region"]
