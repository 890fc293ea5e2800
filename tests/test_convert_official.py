"""The converter's command: official file -> run directory -> a step of training, and back; and what it refuses."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from small import kind, label

from export import savedmodel
from tcp_tf import config as configuration
from tcp_tf import convert_official, official_names, run_dir, torch_file, training
from tcp_tf.autoencoder import build_encoder, build_generator
from tcp_tf.critics import build_discriminator, build_patch_discriminator
from tcp_tf.model import TCP

KEYS = Path(__file__).parent / "data" / "official_sa_256.keys.tsv"
# 256 px and the official depths, hence the official 223 names; narrow, hence quick.
SMALL = {
    "data": {"source": "scenes", "resolution": 256, "batch_size": 2},
    "model": {"channels": 4, "max_channels": 64, "style_dim": 32},
    "patches": {"crops": 2},
}


@pytest.fixture(scope="module")
def arrays() -> dict:
    """A state dict with the official 223 names, and the official counter of steps."""
    config = configuration.from_dict(SMALL)
    wanted = official_names.entries(
        build_encoder(config), build_generator(config), build_discriminator(config), build_patch_discriminator(config)
    )
    assert [entry.name for entry in wanted] == [line.split("\t")[0] for line in KEYS.read_text().splitlines()]
    generator = np.random.default_rng(0)
    values = {
        entry.name: generator.standard_normal(entry.shape).astype(np.float32)
        if entry.constant is None
        else entry.constant
        for entry in wanted
    }
    return {**values, "num_discriminator_iters": np.array([0], np.int64)}


@pytest.fixture(scope="module")
def checkpoint(arrays, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("official") / "official.pth"
    torch_file.write(path, arrays)
    return path


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "converted"
    assert convert_official.main([str(checkpoint), "--run-dir", str(path)]) == 0
    return path


def assert_equal(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_sizes_are_inferred_and_said(checkpoint, tmp_path, capsys):
    assert convert_official.main([str(checkpoint), "--run-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    for size in ("data.resolution=256", "model.channels=4", "model.style_dim=32", "model.encoder_capacity=1.0"):
        assert size in said
    found = run_dir.read_config(tmp_path / "run")
    assert found.model == configuration.from_dict(SMALL).model
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no temporary directory left


def test_a_configuration_gives_the_rest(checkpoint, tmp_path):
    file = tmp_path / "fine_tune.yaml"
    file.write_text("data: {source: 'folder:photos', batch_size: 4}\nloss: {r1_gamma: 3.0}\nmodel: {style_dim: 32}\n")
    assert convert_official.main([str(checkpoint), "--run-dir", str(tmp_path / "run"), "--config", str(file)]) == 0
    found = run_dir.read_config(tmp_path / "run")
    assert (found.data.source, found.data.batch_size, found.loss.r1_gamma) == ("folder:photos", 4, 3.0)
    assert (found.data.resolution, found.model.channels) == (256, 4)


@pytest.mark.parametrize("weights", ["averaged", "trained"])
def test_there_and_back_is_identical(arrays, run, tmp_path, weights):
    back = tmp_path / "back.pth"
    assert convert_official.main(["--to-official", str(run), str(back), "--weights", weights]) == 0
    assert_equal(torch_file.read(back), arrays)


def test_pytorch_reads_the_way_back(arrays, run, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which the project does not")
    assert convert_official.main(["--to-official", str(run), str(tmp_path / "back.pth")]) == 0
    found = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_equal({name: tensor.numpy() for name, tensor in found.items()}, arrays)


def test_the_editor_gets_the_converted_weights(arrays, run):
    autoencoder, _ = run_dir.load_autoencoder(run)
    pairs = (
        *official_names.encoder_entries(autoencoder.encoder),
        *official_names.generator_entries(autoencoder.generator),
    )
    assert_equal(
        official_names.export(pairs), {name: array for name, array in arrays.items() if name.startswith(("E.", "G."))}
    )


def test_a_checkpoint_holds_every_variable(run):
    """Also those of layers that a network keeps in a list."""
    model = TCP(run_dir.read_config(run))
    model.compile()
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    critics = [model.discriminator, model.patch_discriminator]
    networks: list = [model.encoder, model.generator, model.encoder_ema, model.generator_ema, *critics]
    model.checkpoint().restore(run_dir.latest_checkpoint(run)).assert_consumed()
    kernels = [variable for network in networks for variable in network.weights if kind(variable) == "kernel"]
    assert len(kernels) > 100
    assert not [label(variable) for variable in kernels if not np.any(variable.numpy())]


def test_training_goes_on_from_an_official_checkpoint(arrays, run):
    """One step with TCP's two losses (both fall on step 0), from the converted networks, averages and optimizers."""
    model = TCP(configuration.from_dict({**SMALL, "seed": 1}))
    model.compile()
    model.checkpoint().restore(run_dir.latest_checkpoint(run)).assert_consumed()
    images = tf.random.stateless_uniform([2, 256, 256, 3], (1, 2), -1.0, 1.0)
    terms = model.train_step({"image": images, "position": tf.range(2)})
    for name in ("g/code_consistency/content", "g/code_consistency/style", "g/content_alignment", "d/r1", "dp/r1"):
        assert np.isfinite(terms[name]) and terms[name] > 0, name
    tuned = official_names.export(
        official_names.entries(model.encoder, model.generator, model.discriminator, model.patch_discriminator)
    )
    for name in ("E.FromRGB.Conv.weight", "G.ToRGB.conv.weight", "D.stylegan2_D.final_linear.0.weight"):
        change = np.abs(tuned[name] - arrays[name])
        # Adam's step is about its rate, 0.002, at most sqrt(1 / (1 - 0.99)) times that.
        assert 0 < change.max() < 0.021, name


@pytest.mark.slow
@pytest.mark.one_stack
def test_train_py_takes_a_converted_run(tiny_config, tmp_path):
    """The same on the path of the command line: 64 px, two steps; the step count arrives in the official file."""
    wanted = official_names.entries(
        build_encoder(tiny_config),
        build_generator(tiny_config),
        build_discriminator(tiny_config),
        build_patch_discriminator(tiny_config),
    )
    torch_file.write(tmp_path / "tiny.pth", official_names.export(wanted))
    config, _, _ = convert_official.from_official(tmp_path / "tiny.pth", tmp_path / "run", tiny_config)
    assert config == tiny_config
    short = config.model_copy(update={"train": config.train.model_copy(update={"kimg": 0.008})})
    lines: list = []
    training.train(short, tmp_path / "run", log=lines.append)
    assert lines[-1] == f"resumed from {tmp_path / 'run' / run_dir.CHECKPOINTS / 'ckpt-0'}"
    convert_official.to_official(tmp_path / "run", tmp_path / "tuned.pth")
    assert torch_file.read(tmp_path / "tuned.pth")["num_discriminator_iters"] == [2]


@pytest.mark.slow
@pytest.mark.one_stack
def test_a_converted_run_exports(run, tmp_path):
    """The served graph holds the official weights: what it encodes is what the official arrays encode."""
    version = savedmodel.export(run, tmp_path / "models")
    assert (version / "saved_model.pb").is_file()
    served = tf.saved_model.load(str(version))
    autoencoder, _ = run_dir.load_autoencoder(run)
    images = tf.random.stateless_uniform([1, 256, 256, 3], (3, 4))
    codes = served.signatures["encode"](images=images)
    expected = autoencoder.encode(images * 2.0 - 1.0)
    np.testing.assert_allclose(codes["style"], expected.style, atol=1e-5)
    np.testing.assert_allclose(codes["content"], expected.content, atol=1e-5)


class Shell:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def refused(capsys, tmp_path: Path, arguments: list) -> str:
    """Runs a conversion that must fail with code 2 and one line, and leave nothing behind; returns the line."""
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert convert_official.main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("convert_official: ")]
    assert len(lines) == 1 and output.out == ""
    assert sorted(tmp_path.rglob("*")) == before
    return lines[0]


def test_a_truncated_file_is_refused(checkpoint, tmp_path, capsys):
    whole = checkpoint.read_bytes()
    for part in (0, 100, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.pth").write_bytes(whole[:part])
        line = refused(capsys, tmp_path, [tmp_path / "cut.pth", "--run-dir", tmp_path / "run"])
        assert str(tmp_path / "cut.pth") in line and ("damaged" in line or "not a PyTorch checkpoint" in line)


def test_another_model_is_refused(tmp_path, capsys):
    other = {"conv1.weight": np.zeros((8, 3, 3, 3), np.float32), "fc.bias": np.zeros(10, np.float32)}
    torch_file.write(tmp_path / "other.pth", other)
    line = refused(capsys, tmp_path, [tmp_path / "other.pth", "--run-dir", tmp_path / "run"])
    assert "no entry like E.DownToSpatialCode" in line and "not a checkpoint of the official Swapping" in line


def test_a_renamed_key_is_named(arrays, tmp_path, capsys):
    for name in ("E.ToSpatialCode.0.Conv.weight", "Dpatch.convs.128x128.conv2.Conv.weight", "G.ToRGB.bias"):
        renamed = {"odd" if key == name else key: array for key, array in arrays.items()}
        torch_file.write(tmp_path / "renamed.pth", renamed)
        line = refused(capsys, tmp_path, [tmp_path / "renamed.pth", "--run-dir", tmp_path / "run"])
        assert f"lacks {name} of shape {arrays[name].shape}; it has odd of shape {arrays[name].shape}" in line
        (tmp_path / "renamed.pth").unlink()


def test_an_extra_key_is_named(arrays, tmp_path, capsys):
    torch_file.write(tmp_path / "extra.pth", {**arrays, "C.net.weight": np.zeros((2, 3), np.float32)})
    line = refused(capsys, tmp_path, [tmp_path / "extra.pth", "--run-dir", tmp_path / "run"])
    assert "has C.net.weight of shape (2, 3), which the model has not" in line


def test_a_changed_shape_is_named_with_both(arrays, tmp_path, capsys):
    name = "G.UpsamplingResBlock32.conv2.conv.weight"
    changed = {**arrays, name: arrays[name][..., :1]}
    torch_file.write(tmp_path / "changed.pth", changed)
    line = refused(capsys, tmp_path, [tmp_path / "changed.pth", "--run-dir", tmp_path / "run"])
    assert f"{name}: shape {changed[name].shape} in the checkpoint, {arrays[name].shape} in the model" in line


def test_a_callable_in_the_pickle_is_refused_and_not_called(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"E.a": Shell(f"touch {tmp_path}/ran")}, 2))
    line = refused(capsys, tmp_path, [tmp_path / "evil.pth", "--run-dir", tmp_path / "run"])
    assert f"its pickle asks for {os.system.__module__}.system" in line


def test_a_configuration_that_contradicts_is_refused(checkpoint, tmp_path, capsys):
    file = tmp_path / "other.yaml"
    file.write_text("model: {style_dim: 16}\n")
    line = refused(capsys, tmp_path, [checkpoint, "--run-dir", tmp_path / "run", "--config", file])
    assert "model.style_dim: the configuration says 16, the checkpoint's shapes say 32" in line
    line = refused(capsys, tmp_path, [checkpoint, "--run-dir", tmp_path / "run", "--config", tmp_path / "none.yaml"])
    assert "no such configuration" in line


def test_nothing_is_overwritten(checkpoint, run, tmp_path, capsys):
    assert "exists already" in refused(capsys, tmp_path, [checkpoint, "--run-dir", run])
    assert "exists already" in refused(capsys, tmp_path, ["--to-official", run, checkpoint])
    (tmp_path / "empty").mkdir()
    assert convert_official.main([str(checkpoint), "--run-dir", str(tmp_path / "empty")]) == 0


def test_only_whole_runs_go_back(checkpoint, run, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    assert "not a run directory" in refused(capsys, tmp_path, ["--to-official", tmp_path / "bare", tmp_path / "o.pth"])
    run_dir.write_config(tmp_path / "bare", run_dir.read_config(run))
    assert "no checkpoint" in refused(capsys, tmp_path, ["--to-official", tmp_path / "bare", tmp_path / "o.pth"])
    # What is shipped for editing may hold the averaged networks alone.
    autoencoder, config = run_dir.load_autoencoder(run)
    networks = tf.train.Checkpoint(encoder_ema=autoencoder.encoder, generator_ema=autoencoder.generator)
    run_dir.manager(tmp_path / "bare", tf.train.Checkpoint(model=networks), 1).save()
    line = refused(capsys, tmp_path, ["--to-official", tmp_path / "bare", tmp_path / "o.pth"])
    assert "does not hold the four networks" in line


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.pth"],
        ["--run-dir", "r"],
        ["a.pth", "--to-official", "r", "o.pth"],
        ["a.pth", "--run-dir", "r", "--weights", "trained"],
    ],
)
def test_the_command_line_asks_for_one_direction(arguments):
    with pytest.raises(SystemExit) as stop:
        convert_official.main(arguments)
    assert stop.value.code == 2
