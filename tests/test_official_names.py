"""Official names and shapes: the exact list, every axis, and which configuration a list of shapes stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcp_tf import official_names, official_sizes
from tcp_tf.autoencoder import build_encoder, build_generator
from tcp_tf.config import Config, ConfigError, from_dict, load
from tcp_tf.critics import build_discriminator, build_patch_discriminator
from tcp_tf.official_names import MismatchError

ROOT = Path(__file__).parents[1]
KEYS = ROOT / "tests" / "data" / "official_sa_256.keys.tsv"
SMALL = {  # 256 px, hence the same 223 names as the official default
    "data": {"resolution": 256},
    "model": {"channels": 4, "max_channels": 64, "style_dim": 64},
}


def official_keys() -> list:
    """(name, shape, "parameter" or "buffer") of the 223 entries, in the official order."""
    rows = [line.split("\t") for line in KEYS.read_text().splitlines()]
    return [(name, tuple(int(side) for side in shape.split("x")), kind) for name, shape, kind in rows]


def entries(config: Config) -> list:
    return official_names.entries(
        build_encoder(config), build_generator(config), build_discriminator(config), build_patch_discriminator(config)
    )


def shapes(config: Config) -> dict:
    return {entry.name: entry.shape for entry in entries(config)}


def random_arrays(wanted: list) -> dict:
    generator = np.random.default_rng(0)
    return {
        entry.name: generator.standard_normal(entry.shape).astype(np.float32)
        if entry.constant is None
        else entry.constant
        for entry in wanted
    }


@pytest.fixture(scope="module")
def small() -> list:
    return entries(from_dict(SMALL))


def test_the_default_model_has_exactly_the_official_entries():
    found = [
        (entry.name, entry.shape, "parameter" if entry.constant is None else "buffer") for entry in entries(Config())
    ]
    assert found == official_keys()
    assert len(found) == 223


def test_a_smaller_model_has_the_same_names_and_every_variable_once(small):
    assert [entry.name for entry in small] == [name for name, _, _ in official_keys()]
    variables = [id(entry.variable) for entry in small if entry.variable is not None]
    assert len(set(variables)) == len(variables) == 223 - sum(kind == "buffer" for _, _, kind in official_keys())


def test_official_arrays_come_back_identical(small):
    arrays = random_arrays(small)
    official_names.load(small, arrays)
    again = official_names.export(small)
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == np.float32
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_where_single_weights_go(small):
    """One weight of each layout, followed by hand: [indices there] -> [indices here]."""
    arrays = random_arrays(small)
    official_names.load(small, arrays)
    ours = {entry.name: np.asarray(entry.variable) for entry in small if entry.variable is not None}
    width = arrays["D.stylegan2_D.final_linear.0.weight"].shape[1] // 16
    features = arrays["Dpatch.pairlinear.0.weight"].shape[1] // 8
    for name, there, here in [
        ("E.DownToSpatialCode.ResBlockDownBy2.conv2.Conv.weight", (7, 5, 0, 2), (0, 2, 5, 7)),
        ("E.ToGlobalCode.0.weight", (3, 9), (9, 3)),
        ("G.HeadResnetBlock1.conv2.conv.weight", (0, 6, 5, 1, 2), (1, 2, 5, 6)),
        ("G.UpsamplingResBlock64.conv1.conv.weight", (0, 6, 5, 1, 2), (1, 2, 6, 5)),
        ("G.ToRGB.bias", (0, 2, 0, 0), (2,)),
        ("D.stylegan2_D.final_linear.0.weight", (4, (3 * 4 + 1) * 4 + 2), ((1 * 4 + 2) * width + 3, 4)),
        # Second of the pair, channel 3, row 1, column 0.
        ("Dpatch.pairlinear.0.weight", (4, ((features + 3) * 2 + 1) * 2), (((2 + 1) * 2) * features + 3, 4)),
    ]:
        assert ours[name][here] == arrays[name][there], name


def test_a_wrong_state_dict_changes_nothing(small):
    good = random_arrays(small)
    official_names.load(small, good)
    bad = {entry.name: good[entry.name] + (entry.constant is None) for entry in small}
    name = "Dpatch.pairlinear.3.bias"  # the very last
    for change, message in [
        (
            {name: np.zeros(2, np.float32)},
            r"Dpatch\.pairlinear\.3\.bias: shape \(2,\) in the checkpoint, \(1,\) in the",
        ),
        ({name: np.full(1, np.nan, np.float32)}, "Dpatch.pairlinear.3.bias: holds a NaN"),
        ({"G.ToRGB.upsample.kernel": np.ones((4, 4), np.float32)}, "G.ToRGB.upsample.kernel: another blur filter"),
        ({"Z.extra": np.zeros(3, np.float32)}, r"the checkpoint has Z\.extra of shape \(3,\), which the model has not"),
    ]:
        with pytest.raises(MismatchError, match=message):
            official_names.load(small, {**bad, **change})
    with pytest.raises(
        MismatchError, match=r"lacks E.FromRGB.Act.bias of shape \(4,\); it has renamed of shape \(4,\)"
    ):
        renamed = {"renamed" if name == "E.FromRGB.Act.bias" else name: array for name, array in bad.items()}
        official_names.load(small, renamed)
    for name, array in official_names.export(small).items():
        np.testing.assert_array_equal(array, good[name], err_msg=name)


def test_the_official_step_counter_is_read_past(small):
    official_names.load(small, {**random_arrays(small), "num_discriminator_iters": np.array([4], np.int64)})


def test_ffhq_1024_sizes():
    """Shapes worked out by hand from the official settings: capacities 0.4 and 0.8, 5 halvings, crops of 768 px."""
    found = shapes(load(ROOT / "configs" / "ffhq1024.yaml"))
    for name, shape in {
        "E.FromRGB.Conv.weight": (13, 3, 1, 1),
        "E.DownToSpatialCode.ResBlockDownBy16.conv2.Conv.weight": (410, 205, 3, 3),
        "E.DownToGlobalCode.ConvLayerDownBy32.Conv.weight": (819, 410, 3, 3),
        "E.DownToGlobalCode.ConvLayerDownBy64.Conv.weight": (1536, 819, 3, 3),
        "E.ToGlobalCode.0.weight": (1536, 1536),
        "G.HeadResnetBlock0.conv1.conv.weight": (1, 204, 8, 3, 3),
        "G.HeadResnetBlock1.conv2.conv.weight": (1, 409, 409, 3, 3),
        "G.UpsamplingResBlock256.conv2.conv.weight": (1, 102, 102, 3, 3),
        "D.stylegan2_D.convs.0.Conv.weight": (32, 3, 1, 1),
        "D.stylegan2_D.convs.1024x1024.conv2.Conv.weight": (64, 32, 3, 3),
        "D.stylegan2_D.convs.512x512.conv2.Conv.weight": (128, 64, 3, 3),
        "D.stylegan2_D.convs.1.conv2.Conv.weight": (256, 128, 3, 3),
        "D.stylegan2_D.final_linear.0.weight": (512, 512 * 3 * 3),
        "Dpatch.convs.0.Conv.weight": (16, 3, 3, 3),
        "Dpatch.convs.256x256.conv2.Conv.weight": (32, 16, 3, 3),
        "Dpatch.pairlinear.0.weight": (2048, 3072),
    }.items():
        assert found[name] == shape, name


@pytest.mark.parametrize("name", ["tiny", "quickstart", "photos", "ffhq1024"])
def test_a_configuration_is_recognised_by_its_shapes(name):
    """Also those that were trained here with other base widths than the official ones."""
    config = load(ROOT / "configs" / f"{name}.yaml")
    found = shapes(config)
    alone, _ = official_sizes.configuration(found)
    official_names.check_shapes(entries(alone), found)
    together, _ = official_sizes.configuration(found, config)
    assert together == config


def test_the_official_default_is_our_default():
    found, sizes = official_sizes.configuration({name: shape for name, shape, _ in official_keys()})
    assert found == Config()
    assert sizes["model.encoder_capacity"] == sizes["model.generator_capacity"] == 1.0


def test_ffhq_1024_is_inferred():
    config = load(ROOT / "configs" / "ffhq1024.yaml")
    _, sizes = official_sizes.configuration(shapes(config))
    assert sizes == {
        "data.resolution": 768,
        "model.channels": 32,
        "model.max_channels": 512,
        "model.downsamples": 5,
        "model.content_dim": 8,
        "model.style_dim": 1536,
        "model.patch_size": 256,
        "model.encoder_capacity": 0.4,
        "model.generator_capacity": 0.8,
        "model.discriminator_capacity": 1.0,
        "model.patch_capacity": 1.0,
    }


@pytest.mark.parametrize(
    ("path", "value"),
    [("style_dim", 1024), ("downsamples", 3), ("encoder_capacity", 0.5), ("patch_size", 64), ("channels", 16)],
)
def test_a_configuration_that_contradicts_the_shapes_is_refused(path, value):
    found = {name: shape for name, shape, _ in official_keys()}
    base = from_dict({"model": {path: value}})
    with pytest.raises((ConfigError, MismatchError)) as error:
        config, _ = official_sizes.configuration(found, base)
        official_names.check_shapes(entries(config), found)
    assert str(value) in str(error.value) or "Conv.weight" in str(error.value)


def test_one_wrong_shape_is_named_whatever_it_says_about_the_sizes():
    """Each single entry made one wider: the others decide the sizes, and the odd one is named with both shapes."""
    found = {name: shape for name, shape, _ in official_keys()}
    wanted = entries(Config())
    for name, shape in found.items():
        odd = (shape[0] + 1, *shape[1:])
        config, _ = official_sizes.configuration({**found, name: odd})
        assert config.model == Config().model, name
        with pytest.raises(MismatchError) as error:
            official_names.check_shapes(wanted, {**found, name: odd})
        assert str(error.value) == f"{name}: shape {odd} in the checkpoint, {shape} in the model"


@pytest.mark.parametrize("part", ["E", "G", "D", "Dpatch"])
def test_a_missing_network_is_refused(part):
    found = {name: shape for name, shape, _ in official_keys() if not name.startswith(part + ".")}
    with pytest.raises(MismatchError, match=rf"no entry like {part}\."):
        official_sizes.configuration(found)
