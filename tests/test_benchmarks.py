"""The measuring tools: FLOPs equal hand counts, every case runs, PyTorch's networks and gradients equal ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import keras
import numpy as np
import pytest
import tensorflow as tf
from small import SETTINGS, TINY, relative_difference, small_batch, small_config

from benchmarks import cases, children, compare, flops, measuring, precision, programs, report, scaling, speed
from benchmarks.children import CaseError, Request
from tcp_tf import config as configuration
from tcp_tf import official_names, run_dir
from tcp_tf.draws import Draws
from tcp_tf.layers import Conv, Dense
from tcp_tf.model import TCP
from tcp_tf.objective import Objective

pytestmark = pytest.mark.one_stack

SWAPPING_AUTOENCODER = (
    "loss.g.code_consistency.content=0",
    "loss.g.code_consistency.style=0",
    "loss.g.content_alignment=0",
)


def counted(function: Any, *shapes: tuple) -> dict[str, int]:
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    return flops.count(tf.function(function, autograph=False).get_concrete_function(*specs))


def test_flops_of_layers_equal_hand_counts() -> None:
    conv, dense = Conv(3, 8, 3, stride=2, padding=(1, 1)), Dense(6, 5)
    one = 2 * (4 * 5 * 5 * 8) * (3 * 3 * 3)  # outputs of 10 px pictures, then multiplications for each
    assert counted(conv, (4, 10, 10, 3)) == {"convolution": one, "depthwise": 0, "matmul": 0}
    assert counted(dense, (7, 6)) == {"convolution": 0, "depthwise": 0, "matmul": 2 * 7 * 6 * 5}

    def with_gradients(images: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(conv(images) ** 2)
        return tape.gradient(total, [images, *conv.trainable_variables])

    assert counted(with_gradients, (4, 10, 10, 3))["convolution"] == 3 * one


def test_flops_of_every_kind_of_product() -> None:
    taps = tf.ones([3, 3, 6, 1])
    blurred = counted(lambda x: tf.nn.depthwise_conv2d(x, taps, [1, 1, 1, 1], "VALID"), (2, 8, 8, 6))
    assert blurred["depthwise"] == 2 * (2 * 6 * 6 * 6) * 9
    up = counted(lambda x: tf.nn.conv2d_transpose(x, tf.ones([3, 3, 5, 6]), [2, 17, 17, 5], 2, "VALID"), (2, 8, 8, 6))
    assert up["convolution"] == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 5)
    assert counted(lambda a, b: tf.matmul(a, b, transpose_a=True), (4, 3), (4, 5))["matmul"] == 2 * 3 * 4 * 5
    assert counted(lambda a, b: tf.matmul(a, b, transpose_b=True), (2, 3, 4), (2, 5, 4))["matmul"] == 2 * 2 * 3 * 4 * 5
    assert counted(lambda a, b: tf.einsum("nrc,nhwr->nhwc", a, b), (2, 3, 4), (2, 5, 6, 3))["matmul"] == 2 * 720


def test_flops_count_what_runs_and_no_more() -> None:
    square = 2 * 4**3

    def unused(a: tf.Tensor) -> tf.Tensor:
        tf.matmul(tf.matmul(a, a), a)
        return tf.matmul(a, a)

    inner = tf.function(lambda a: tf.matmul(a, a), autograph=False)

    def branches(a: tf.Tensor) -> tf.Tensor:
        return tf.cond(a[0, 0] > 0, lambda: tf.matmul(a, tf.matmul(a, a)), lambda: tf.matmul(a, a))

    assert counted(unused, (4, 4))["matmul"] == square
    assert counted(lambda a: inner(inner(a)), (4, 4))["matmul"] == 2 * square
    assert counted(branches, (4, 4))["matmul"] == 2 * square

    def squares(a: tf.Tensor, most: Optional[int] = None) -> tf.Tensor:
        return tf.while_loop(
            lambda a: tf.reduce_sum(a) < 9.0, lambda a: [tf.matmul(a, a)], [a], maximum_iterations=most
        )[0]

    assert counted(lambda a: squares(a, most=3), (4, 4))["matmul"] == 3 * square
    with pytest.raises(ValueError, match=f"{square} FLOPs in a loop of unknown length"):
        counted(squares, (4, 4))
    with pytest.raises(ValueError, match=r"shape \(None, 4\) is not known"):
        counted(lambda a: tf.matmul(a, a, transpose_b=True), (None, 4))


def test_phases_are_the_steps_with_the_same_lazy_terms() -> None:
    config = small_config("loss.r1_every=16", "loss.consistency_every=4", "loss.consistency_start_kimg=1")
    objective = Objective(config.loss, 1, config.data.batch_size)
    found = cases.phases(objective)
    assert sorted(share for _, share in found.values()) == [1 / 16, 3 / 16, 12 / 16]
    for names, (step, _) in found.items():
        assert step >= 250
        assert [name for name in objective.intervals if objective.due(name, step)] == list(names)


def test_summary_and_amortised_mean() -> None:
    result = measuring.summary([1.0, 2.0, 3.0, 4.0, 10.0])
    assert result == {"median_s": 3.0, "spread": 2.0 / 3.0, "repeats": 5}
    assert measuring.weighted([(0.75, 1.0), (0.25, 3.0)]) == 1.5


def tiny_request(case: str, **others: Any) -> Request:
    return Request(case, str(TINY), list(SETTINGS), **{"batch": 2, "seconds": 0.01, **others})


@pytest.mark.parametrize("case", children.INFERENCE)
def test_inference_cases(case: str) -> None:
    result = cases.run(tiny_request(case, regions=2))
    assert result["images"] == 2 and result["flops"] > 0 and result["median_s"] > 0 and result["peak_bytes"] > 2**20


def test_pictures_in_bfloat16_are_compared_with_float32() -> None:
    try:
        result = cases.run(Request("decode", str(TINY), [*SETTINGS, "mixed_precision=mixed_bfloat16"], seconds=0.01))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert 30 < result["psnr_to_float32"] < 70
    assert "psnr_to_float32" not in cases.run(tiny_request("decode"))


@pytest.mark.slow
def test_a_session_beside_the_function_in_the_process() -> None:
    result = cases.run(tiny_request(children.SERVED))
    assert result["images"] == 2 and result["flops"] > 0 and result["median_s"] > 0 and result["times_in_process"] > 0


@pytest.mark.slow(35)
def test_training_cases_amortise_their_phases() -> None:
    whole = cases.run(Request("training_step", str(TINY), [*SETTINGS, "loss.r1_every=2"], batch=2, seconds=0.01))
    assert [phase["share"] for phase in whole["phases"].values()] == [0.5, 0.5]
    plain = whole["phases"]["plain"]["flops"]
    assert plain < whole["flops"] < max(phase["flops"] for phase in whole["phases"].values())
    part = cases.run(tiny_request("generator_part"))
    assert 0 < part["flops"] < plain


@pytest.mark.slow
def test_programs_run_where_tensorflow_is_not(tmp_path: Path) -> None:
    """A case as an XLA program: what stands beside it is enough to run it, and XLA in JAX finds the same picture."""
    arguments = ["--config", str(TINY), *(word for each in SETTINGS for word in ("--set", each)), "--batch", "2"]
    assert programs.main([str(tmp_path), *arguments, "--cases", children.STYLE_MAP]) == 0
    (entry,) = json.loads((tmp_path / programs.INDEX).read_text(encoding="utf-8"))
    assert entry["case"] == children.STYLE_MAP and entry["flops"] > 0
    assert [told.get("draw") for told in entry["inputs"][:3]] == ["pictures", "pictures", "stripes"]
    assert all(("draw" in told) != ("values" in told) for told in entry["inputs"])
    masks = entry["inputs"][2]["shape"]
    np.testing.assert_array_equal(programs.drawn("stripes", masks, 2), cases.stripes(2, 1, masks[2]))
    assert programs.drawn("stripes", masks, 2).mean() == 0.5
    pytest.importorskip("jax", reason="JAX (extra `bench`) is not installed")
    command = [
        sys.executable,
        "-m",
        "benchmarks.on_jax",
        str(tmp_path),
        "--seconds",
        "0.01",
        "--results",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=children.ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads((tmp_path / "speed_gpu.json").read_text(encoding="utf-8"))["results"]
    assert result["case"] == children.STYLE_MAP and result["median_s"] > 0 and result["bytes"] > 0


def test_pipeline_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "PHOTOGRAPHS", 4)
    result = cases.run(tiny_request(children.PIPELINE))
    assert result["images"] == 2 and result["images_per_cpu_second"] > 0


@pytest.mark.slow
def test_speed_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "speed.json"
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    arguments = ["--config", str(TINY), *settings, "--only", "encode", "--batch", "1", "--seconds", "0.01"]
    assert speed.main([*arguments, "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    assert [(result["case"], result["batch"]) for result in results["results"]] == [("encode", 1)]
    assert results["ceiling"]["convolution"] > 0 and results["ceiling"]["dtype"] == "float32"
    assert capsys.readouterr().out.splitlines()[-1].startswith("encode")
    (tmp_path / "none").mkdir()
    assert "| encode | 1 |" in report.page(tmp_path) and "| encode" not in report.page(tmp_path / "none")


def test_a_child_that_fails_is_one_line() -> None:
    with pytest.raises(CaseError, match="no such configuration"):
        children.run(Request("encode", "nowhere.yaml", seconds=0.01), tuned=True)


MACHINE = {"cpu": "a CPU", "cores": 2, "gpus": [], "tensorflow": "2", "keras": "3", "dtype": "float32"}
CEILING: dict[str, Any] = {**MACHINE, "matmul": 2e11, "convolution": 4e11}
RUN = {"config": "c.yaml", "overrides": ["seed=1"], "ceiling": CEILING}


def test_tables_hold_medians_ratios_and_failures(tmp_path: Path) -> None:
    rounds = [{"median_s": seconds, "peak_bytes": 2**30, "flops": 1e9} for seconds in (0.2, 0.1, 0.3)]
    sides = {"ours": compare.over_rounds(rounds), "eager": {**rounds[0], "median_s": 0.5}, "compiled": {"error": "no"}}
    result = {"case": "decode", "batch": 8, "sides": sides}
    assert compare.line(result).startswith(
        "decode, batch 8: ours 200 ms 1.0 GiB; eager 500 ms 1.0 GiB (2.50x); compiled"
    )
    run = {**RUN, "allocator": "tuned", "agreement": {"swap": 4e-7}, "results": [result]}
    (tmp_path / "compare.json").write_text(json.dumps(run))
    part = {"median_s": 0.5, "spread": 0.1, "flops": 1e11, "share": 1.0}
    step = {"case": "training_step", "batch": 4, **part, "images": 4, "peak_bytes": 2**31, "phases": {"plain": part}}
    (tmp_path / "speed.json").write_text(json.dumps({**RUN, "results": [step]}))
    page = report.page(tmp_path)
    assert "| decode | 8 | 200 ms | 1.0 GiB | 500 ms (2.50 x) | 1.0 GiB | failed |  |" in page
    assert "| training_step | 4 | 500 ms | 10% | 8 | 100 | 200 | 50% | 100% | 2.00 GiB |" in page
    assert "ours 500 ms 2.0 GiB [plain 500 ms]" in compare.line({**step, "sides": {"ours": step}})
    assert "plain 500 ms (100 GFLOP, 100.0%)" in page and "a CPU, 2 cores; TensorFlow 2; `c.yaml`, `seed=1`" in page


def test_a_text_longer_than_its_column_stands_by_itself() -> None:
    pipeline = {"case": "data_pipeline/256px", "batch": 16, "median_s": 0.03, "images": 16, "peak_bytes": 2**30}
    told = speed.line(speed.cells({**pipeline, "images_per_cpu_second": 255}, CEILING))
    assert " ".join(told.split()) == "data_pipeline/256px 16 30 ms 533 255 images/s per core 1.00 GiB"


def test_sweeps_and_their_plots(tmp_path: Path) -> None:
    options = scaling.parse(["--config", str(TINY), "--largest", "128"])
    for sweep in scaling.SWEEPS:
        found = scaling.points(sweep, options)
        assert len({point.axis for point in found}) >= 2
        for axis, request in found:
            assert axis <= 128 and request.seconds == options.seconds
            configuration.load(request.config, request.overrides)
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra `bench`")
    points = [{"axis": axis, "case": "decode", "median_s": 0.1 * axis} for axis in (1, 2, 4)]
    sweeps = {"regions": [*points, {"axis": 8, "case": "decode", "error": "killed"}]}
    (written,) = report.plot({**RUN, "sweeps": sweeps}, tmp_path / "pictures")
    assert written.name == "speed_cpu_regions.svg" and "<svg" in written.read_text()
    (tmp_path / "scaling.json").write_text(json.dumps({**RUN, "sweeps": sweeps}))
    page = report.page(tmp_path)
    assert "| decode | 100 ms | 200 ms | 400 ms | failed |" in page and "(pictures/speed_cpu_regions.svg)" in page


def test_what_is_trained_in_both_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
        directory = Path(command[command.index("--run-dir") + 1])
        settings = [command[place + 1] for place, part in enumerate(command) if part == "--set"]
        config = configuration.load(precision.study.BASE, settings)
        assert directory.name == f"{config.mixed_precision}-{config.seed}" and config.train.kimg == 2.4
        assert config.loss.gan_start_kimg == config.loss.consistency_start_kimg == 0.8
        directory.mkdir(parents=True)
        lines = '{"kimg": 1.2, "g/l1": 0.3}\n{"kimg": 2.4, "images_per_second": 9, "g/l1": 0.2345678, "d/r1": 1.0}\n'
        (directory / "metrics.jsonl").write_text(lines)
        run_dir.write_config(directory, config)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.chdir(precision.ROOT)
    monkeypatch.setattr(precision.study.subprocess, "run", trained)
    monkeypatch.setattr(run_dir, "latest_checkpoint", lambda directory: "ckpt-300")
    monkeypatch.setattr(precision.study, "judge_curve", lambda directory, pairs: {"swap/psnr": {"mean": 9.0}})
    monkeypatch.setattr(precision, "load_pairs", lambda *arguments: None)
    monkeypatch.setattr(precision.study, "commit", lambda: "c")
    file = tmp_path / "precision.json"
    assert precision.main(["--runs", str(tmp_path / "runs"), "--json", str(file)]) == 0
    runs = json.loads(file.read_text())["runs"]
    assert [(run["precision"], run["seed"]) for run in runs] == [
        *(("float32", seed) for seed in range(4)),
        *(("mixed_bfloat16", seed) for seed in range(2)),
    ]
    assert runs[0]["curve"] == {"kimg": [1.2, 2.4], "d/r1": [None, 1.0], "g/l1": [0.3, 0.23457]}
    assert runs[0]["measures"] == {"swap/psnr": 9.0}
    monkeypatch.setattr(run_dir, "latest_checkpoint", lambda directory: "ckpt-299")
    assert precision.main(["--runs", str(tmp_path / "short")]) == 2
    assert precision.main(["--config", "nowhere.yaml"]) == 2
    for wrong in (["--seeds", "1"], ["--start", "2.4"]):
        with pytest.raises(SystemExit):
            precision.parse(wrong)


def test_curves_in_both_precisions(tmp_path: Path) -> None:
    def run(precision: str, seed: int, loss: float) -> dict[str, Any]:
        losses = [8.0, 8.0, 8.0, 8.0, loss - 0.5, loss + 0.5]
        curve = {"kimg": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "d/r1": [*[None] * 5, loss], "g/l1": losses}
        return {"precision": precision, "seed": seed, "curve": curve, "measures": {"swap/psnr": 20.0 + seed}}

    runs = [run("float32", 0, 0.2), run("float32", 1, 0.4), run("mixed_bfloat16", 0, 0.5)]
    about = {"config": "c.yaml", "overrides": ["train.kimg=6"], "start_kimg": 2.0, "commit": "c", "machine": "a CPU"}
    results = {**about, "runs": runs}
    (tmp_path / "precision.json").write_text(json.dumps(results))
    page = report.page(tmp_path)
    assert "| `g/l1` | 0.2 to 0.4 | 0.5 to 0.5 | 1.4 |" in page, "0.2 from the mean, the seeds' deviation is 0.141"
    assert "| `d/r1` | 0.2 to 0.4 |" in page and "| `swap/psnr` | 20 to 21 | 20 to 20 | 0.7 |" in page
    assert "`train.kimg=6`" in page and "start at 2 kimg" in page
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra `bench`")
    report.plot_precision(results, tmp_path)
    assert (tmp_path / report.CURVES).read_text().count("<svg") == 1


def test_the_page_is_written_from_the_results() -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.RESULTS), "run `python -m benchmarks.report`"


# The other side of the comparison.


def test_pytorch_networks_compute_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is in the extra `bench`")
    from benchmarks import agreement, torch_cases

    errors = agreement.run(tiny_request("agreement", weights=str(tmp_path)))
    assert set(errors) == {"content", "style", "swap", "masked_blend", "logits", "crops", "patch_logits"}
    modes = {"encode": "eager", "decode": "eager+ungrouped+channels_last", "training_step": "eager"}
    for case, mode in modes.items():
        result = torch_cases.run(tiny_request(case, side=mode, weights=str(tmp_path)))
        assert result["median_s"] > 0 and result["images"] == 2
    with pytest.raises(ValueError, match="quick"):
        torch_cases.flags_of("quick")


def test_pytorch_steps_have_the_same_gradients(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra `bench`")
    from benchmarks import agreement, torch_cases
    from benchmarks.reference_torch import Objectives

    config = small_config("model.noise=false", "loss.r1_every=1", *SWAPPING_AUTOENCODER)
    model, batch = TCP(config), small_batch(config)
    critics = model.discriminator, model.patch_discriminator
    agreement.write(tmp_path, config, model.ema, *critics)  # at the start the averages are the weights
    gammas = config.loss.r1_gamma, config.loss.patch_r1_gamma
    for grouped in (True, False):
        theirs = torch_cases.load_networks(tmp_path, grouped)
        objectives = Objectives(theirs, config.loss.weights, config.model.patch_size, gammas)
        images = agreement.nchw(batch["image"])
        boxes = torch.from_numpy(Draws(config, model.step, batch["position"]).boxes(3).numpy())
        sides: dict[str, list[Any]] = {
            "g": [theirs.encoder, theirs.generator],
            "d": [theirs.discriminator, theirs.patch_discriminator],
        }
        losses = {
            "g": objectives.generator(images, boxes),
            "d": objectives.discriminators(images, boxes) + objectives.r1(images, boxes),
        }
        ours, _ = model.gradients(batch)
        variables = {"g": model.generator_side, "d": model.discriminator_side}
        entries = official_names.entries(model.encoder, model.generator, *critics)
        layouts = {id(entry.variable): entry.layout for entry in entries if entry.layout is not None}
        order = {id(entry.variable): number for number, entry in enumerate(entries) if entry.layout is not None}
        for side, networks in sides.items():
            parameters = [parameter for network in networks for parameter in network.parameters()]  # in official order
            gradients = torch.autograd.grad(losses[side], parameters, allow_unused=True)
            pairs = sorted(zip(variables[side], ours[side]), key=lambda pair: order[id(pair[0])])
            expected = [
                np.zeros(p.shape, np.float32) if g is None else g.numpy() for p, g in zip(parameters, gradients)
            ]
            found = [layouts[id(variable)].official(np.asarray(gradient)) for variable, gradient in pairs]
            assert relative_difference(found, expected) < 1e-4, side
