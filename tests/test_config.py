"""The configuration: every shipped file loads, and what cannot work is refused in one line with the key's path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcp_tf.config import Config, ConfigError, dump, from_dict, load, reference

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def refusal(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    """The lines in which a configuration is refused."""
    file = tmp_path / "refused.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load(file, overrides)
    return str(refused.value).splitlines()


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of everything that is not a group."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_file_loads_survives_a_round_trip_and_says_what_it_needs(file: Path, tmp_path: Path) -> None:
    config = load(file)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump(config), encoding="utf-8")
    assert load(copy) == config
    header = file.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in header)
    for word in ("Command", "Hardware", "Result"):
        assert any(line.startswith(f"# {word} ") for line in header), f"{file.name} has no {word} in its header"


def test_the_promised_files_are_there() -> None:
    promised = {"quickstart", "tiny", "photos", "church256", "bedroom256", "ffhq512", "ffhq1024", "afhq256"}
    promised |= {"mountain512", "sa_quickstart", "sa_church256"}
    assert promised <= {file.stem for file in SHIPPED}


@pytest.mark.parametrize("name", ["quickstart", "church256"])
def test_baseline_differs_from_its_experiment_only_in_the_two_losses(name: str) -> None:
    ours = leaves(load(ROOT / "configs" / f"{name}.yaml").model_dump())
    baseline = leaves(load(ROOT / "configs" / f"sa_{name}.yaml").model_dump())
    losses = {f"loss.g.{key}" for key in ("code_consistency.content", "code_consistency.style", "content_alignment")}
    assert {key for key in ours if ours[key] != baseline[key]} == losses
    assert all(baseline[key] == 0 for key in losses)


def test_the_defaults_are_the_official_church_settings() -> None:
    church = leaves(load(ROOT / "configs" / "church256.yaml").model_dump())
    defaults = leaves(Config().model_dump())
    assert {key for key in defaults if defaults[key] != church[key]} == {"data.source"}


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n", encoding="utf-8")
    assert load(file) == Config()


@pytest.mark.parametrize(
    ("text", "override", "line"),
    [
        ("loss: {r1_gama: 2}", None, "loss.r1_gama: unknown key; did you mean loss.r1_gamma?"),
        ("colour: red", None, "colour: unknown key"),
        ("loss: {g: {code_consistency: {style: -1}}}", None, "loss.g.code_consistency.style: must be greater than"),
        ("data: {batch_size: 8.5}", None, "data.batch_size: must be of type integer, got 8.5"),
        ("data: {flip: 1}", None, "data.flip: must be of type boolean, got 1"),
        ("seed: true", None, "seed: must be of type integer, got True"),
        ("loss: {r1_gamma: '2'}", None, "loss.r1_gamma: must be of type number, got '2'"),
        ("train: {kimg: .nan}", None, "train.kimg: must be a finite number, got nan"),
        ("loss: 3", None, "loss: must be a group of keys, got 3"),
        ("blend: {strategy: pixels}", None, "blend.strategy: must be 'encoder_features', 'style_map' or"),
        ("blend: {masks: [blob]}", None, "blend.masks.0: must be 'rectangle', 'ellipse', 'brush' or 'half_plane'"),
        ("blend: {masks: []}", None, "blend.masks: must name at least one"),
        ("blend: {masks: [brush, brush]}", None, "blend.masks: names a kind twice"),
        ("blend: {min_area: 0.7}", None, "blend.min_area: must not exceed blend.max_area = 0.6, got 0.7"),
        ("data: {batch_size: 7}", None, "data.batch_size: must be even, because neighbours swap their styles, got 7"),
        ("replicas: 3", None, "data.batch_size: must give each replica the same even number of pictures, got 16 for 3"),
        ("replicas: some", None, "replicas: must be 'auto', a number of devices >= 1 or a list of device names"),
        ("replicas: 0", None, "replicas: must be 'auto', a number of devices >= 1 or a list of device names"),
        ("replicas: ['/gpu:0', '/gpu:0']", None, "replicas: names a device twice"),
        ("data: {resolution: 250}", None, "data.resolution: must be a multiple of 2^model.downsamples = 16, got 250"),
        ("data: {resolution: 112}", None, "data.resolution: the image discriminator halves it 5 times"),
        ("data: {resolution: 64}", None, "model.downsamples: the style head needs 7 positions a side, 64 px leave 4"),
        ("data: {preprocess: resize, load_size: 300}", None, "data.load_size: has no meaning with data.preprocess"),
        ("data: {load_size: 200}", None, "data.load_size: must be at least data.resolution = 256, got 200"),
        ("data: {source: web}", None, "data.source: must be 'scenes', 'folder:PATH' or 'tfds:NAME', got 'web'"),
        ("data: {source: null}", None, "data.source: exactly one of data.source and data.sources must be set"),
        ("data: {sources: [scenes, 'folder:x']}", "data.source=scenes", "data.source: exactly one of data.source and"),
        ("data: {sources: [scenes]}", None, "data.sources: joins two or more data sets"),
        ("data: {sources: [scenes, x]}", None, "data.sources: must be 'scenes', 'folder:PATH' or 'tfds:NAME', got 'x'"),
        ("model: {patch_size: 96}", None, "model.patch_size: must be a power of two, got 96"),
        ("model: {max_channels: 16}", None, "model.max_channels: must be at least model.channels = 32, got 16"),
        ("patches: {min_scale: 0.5}", None, "patches.min_scale: must not exceed patches.max_scale = 0.25, got 0.5"),
        ("patches: {min_scale: 0.001}", None, "patches.min_scale: crops of 256 px pictures must be 2 px or more"),
        ("loss: {d: {gan_real: 0}}", None, "loss.d: loss.g.gan_rec or loss.g.gan_swap needs a discriminator"),
        ("loss: {d: {gan_rec: 0}}", None, "loss.d: loss.g.gan_rec needs a discriminator that learns"),
        ("loss: {dp: {fake: 0}}", None, "loss.dp: loss.g.patch_gan needs a patch discriminator"),
        ("augment: {colour_grid: 2, colour_clusters: 3}", None, "augment.colour_grid: colours are mixed by cluster"),
        ("augment: {swaps_start_kimg: 1}", None, "augment.swaps_start_kimg: the other contents are of recoloured"),
        ("optimizer: {generator: {args: {learning_rate: 1}}}", None, "optimizer.generator.args.learning_rate: belongs"),
        ("[1, 2]", None, "refused.yaml: must hold keys and values, got a list"),
        ("a: [1", None, "refused.yaml: not YAML"),
        ("seed: 1\ndata: {flip: true, flip: false}", None, "refused.yaml: flip: given twice, again in line 2"),
        ("", "seed", "seed: an override looks like loss.r1_gamma=2"),
        ("", "=2", "=2: an override looks like loss.r1_gamma=2"),
        ("seed: 1", "seed.x=2", "seed.x: seed is a value, not a group of keys"),
        ("", "loss.r1_gamma=lots", "loss.r1_gamma: must be of type number, got 'lots'"),
        ("", "data.flip=[1", "data.flip: not YAML"),
    ],
)
def test_refused_in_one_line_that_names_the_key(tmp_path: Path, text: str, override: str | None, line: str) -> None:
    lines = refusal(tmp_path, text, *([] if override is None else [override]))
    assert len(lines) == 1
    assert line in lines[0]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"seed: \xee\x9b", "cannot be read: 'utf-8' codec can't decode byte"),
        (b"seed: 2001-99-99", "not YAML: month must be in 1..12"),
        (b"seed: " + b"[" * 5000, "not a configuration: nested more than 20 deep"),
        (b"a: &a [x, x]\nb: &b [*a, *a]", r"\*a: aliases are not supported"),  # thirty lines of this are a billion x
        (b"seed: !!python/object/apply:os.system [x]", "not YAML: could not determine a constructor for the tag"),
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"hostile\.yaml: {line}") as refused:
        load(file)
    assert "\n" not in str(refused.value)


def test_every_problem_gets_its_line(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "seed: x\nloss: {r1_every: 0}\ndata: {batch: 3}")
    assert [line.split(":")[0] for line in lines] == ["seed", "data.batch", "loss.r1_every"]


def test_all_weights_zero_is_refused() -> None:
    zero = {"l1": 0, "gan_rec": 0, "gan_swap": 0, "patch_gan": 0, "content_alignment": 0}
    with pytest.raises(ConfigError, match="loss.g: every weight is 0"):
        from_dict({"loss": {"g": {**zero, "code_consistency": {"content": 0, "style": 0}}}})


def test_a_missing_file_is_told_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such configuration; beside it: .*there\.yaml"):
        load(tmp_path / "gone.yaml")


def test_overrides_reach_into_groups_and_hold_yaml() -> None:
    overrides = ["loss.r1_gamma=2", "loss.g.code_consistency.style=8.5", "blend.masks=[brush]", "data.data_dir=~/tfds"]
    overrides += ["optimizer.generator.args.epsilon=1e-7", "replicas=['/cpu:0', '/cpu:1']", "data.source=folder:a=b"]
    config = load(ROOT / "configs" / "quickstart.yaml", overrides)
    assert config.loss.r1_gamma == 2
    assert config.loss.g.code_consistency.style == 8.5
    assert config.blend.masks == ["brush"]
    assert config.data.data_dir == "~/tfds"
    assert config.optimizer.generator.args == {"beta_1": 0.0, "beta_2": 0.99, "epsilon": 1e-7}
    assert config.replicas == ["/cpu:0", "/cpu:1"]
    assert config.data.all_sources == ["folder:a=b"]


def test_adams_arguments_are_for_adam_only() -> None:
    assert from_dict({"optimizer": {"generator": {"name": "SGD"}}}).optimizer.generator.args == {}
    assert from_dict({"optimizer": {"generator": {"name": "Adam"}}}).optimizer.generator.args["beta_2"] == 0.99


def test_joined_sources_replace_the_default_one() -> None:
    config = from_dict({"data": {"sources": ["scenes", "folder:photos"]}})
    assert config.data.source is None
    assert config.data.all_sources == ["scenes", "folder:photos"]
    assert Config().data.all_sources == ["scenes"]


def test_short_side_is_the_load_size_or_the_resolution() -> None:
    assert from_dict({"data": {"load_size": 300}}).data.short_side == 300
    assert Config().data.short_side == 256


def test_weights_go_by_the_names_of_the_curves() -> None:
    weights = Config().loss.weights
    assert list(weights) == [
        *("g/l1", "g/gan_rec", "g/gan_swap", "g/patch_gan"),
        *("g/code_consistency/content", "g/code_consistency/style", "g/content_alignment"),
        *("d/gan_real", "d/gan_rec", "d/gan_swap", "d/r1", "dp/real", "dp/fake", "dp/r1"),
    ]
    assert weights["g/code_consistency/style"] == 16.0


def test_a_config_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


@example(r1_gamma=0.0, learning_rate=1.0, kimg=1.0, seed=0, path="\x85 \u2028\u2029")
@settings(max_examples=50, deadline=None)
@given(
    r1_gamma=st.floats(0, 1e6),
    learning_rate=st.floats(1e-12, 1.0),
    kimg=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**31 - 1),
    path=st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", codec="utf-8"), min_size=1),
)
def test_any_values_survive_yaml(r1_gamma: float, learning_rate: float, kimg: float, seed: int, path: str) -> None:
    config = Config.model_validate(
        {
            "seed": seed,
            "data": {"source": f"folder:{path}"},
            "loss": {"r1_gamma": r1_gamma},
            "optimizer": {"generator": {"learning_rate": learning_rate}},
            "train": {"kimg": kimg},
        }
    )
    assert from_dict(yaml.safe_load(dump(config))) == config


def test_every_knob_is_documented() -> None:
    rows = [[cell.strip() for cell in row.replace("\\|", "/").split("|")] for row in reference().splitlines()]
    assert {len(row) for row in rows} == {8}  # six columns between the outer bars
    documented = {row[1].strip("`"): row[6] for row in rows[2:]}
    config = leaves(Config().model_dump(exclude={"optimizer": {"generator": {"args"}, "discriminator": {"args"}}}))
    assert set(documented) == set(config) | {"optimizer.generator.args", "optimizer.discriminator.args"}
    assert all(len(meaning) > 5 for meaning in documented.values())


def test_a_config_is_judged_before_tensorflow_is_imported() -> None:
    program = "import sys, tcp_tf, tcp_tf.config as c; c.load('configs/tiny.yaml'); print('tensorflow' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"
