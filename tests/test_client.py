"""The client over both protocols against the emulator of TensorFlow Serving, or a real server (docs/serving.md)."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from PIL import Image

pytest.importorskip("tensorflow_serving", reason="needs the extra `serve`")

from resident import memory
from serving.emulator import Address, serve
from serving.model import Arrays
from serving.pictures import an_edit, arrays, bad_files, bad_requests, file, strings
from serving.status import StatusError
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from export import client as client_module
from export.client import PROTOCOLS, Client, Edit, ServingError, connect
from tcp_tf import Editor, data, images
from tcp_tf.run_dir import load_autoencoder

ROOT = Path(__file__).resolve().parents[1]
ONE_LEVEL = 1  # of 255: the networks may differ in their last bits, which rounding to levels can enlarge


@pytest.fixture(scope="module")
def clients(server: Address) -> Iterator[dict[str, Client]]:
    both = {
        protocol: connect(protocol, server.host, server.port(protocol), server.model, deadline=120)
        for protocol in PROTOCOLS
    }
    for each in both.values():
        each.wait_until_available()
    yield both
    for each in both.values():
        each.close()


@pytest.fixture(params=PROTOCOLS)
def client(request: pytest.FixtureRequest, clients: dict[str, Client]) -> Client:
    return clients[request.param]


@pytest.fixture(scope="module")
def in_process(server: Address) -> Callable[[str, Arrays], Arrays]:
    """What the served model answers in this process."""
    newest = max(int(entry.name) for entry in server.base_path.iterdir() if entry.name.isdigit())
    model = tf.saved_model.load(str(server.base_path / str(newest)))

    def answer(signature: str, inputs: Arrays) -> Arrays:
        outputs = model.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return answer


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


@pytest.fixture(scope="module")
def photograph() -> Edit:
    """A photograph, the look of another, and a mask with soft edges; no side is a multiple of the stride."""
    height, width = 90, 75
    photo = Image.fromarray(skimage.data.astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    style = Image.fromarray(skimage.data.coffee()).resize((96, 64), Image.Resampling.BICUBIC)
    ramp = np.linspace(0, 255, height).astype(np.uint8)[:, None].repeat(width, axis=1)
    return Edit(file(np.asarray(photo), format="JPEG", quality=95), file(np.asarray(style)), file(ramp), 0.8)


def test_a_photograph_edited_over_either_protocol_is_the_picture_that_the_model_makes(
    server: Address, clients: dict[str, Client], photograph: Edit, request: pytest.FixtureRequest
) -> None:
    results = [each.edit(*photograph) for each in clients.values()]
    assert results[0] == results[1], "gRPC and REST, the same bytes"
    if server.pid is None:
        pytest.skip("which run a real server's model is from is not known")
    model, _ = load_autoencoder(request.getfixturevalue("tiny_run"))
    photo, look, mask = (images.decode(each) for each in photograph[:3])
    height, width = photo.shape[:2]
    missing = ((0, -height % model.stride), (0, -width % model.stride), (0, 0))
    hybrid = model.masked_blend(
        data.to_model(np.pad(photo, missing, "reflect"))[None],
        data.to_model(look)[None],
        np.pad(mask[..., :1], missing, "reflect")[None].astype(np.float32) / 255,
        tf.constant([photograph.strength]),
    )
    expected = np.round(np.clip((hybrid[0].numpy() + 1) * 127.5, 0, 255)).astype(int)[:height, :width]
    assert np.ptp(expected) > 50
    assert np.abs(pixels(results[0]) - expected).max() <= ONE_LEVEL
    edited = Editor.load(request.getfixturevalue("tiny_run")).masked_blend(photo, look, mask, photograph.strength)
    assert np.abs(pixels(results[0]) - np.asarray(edited).astype(int)).max() <= ONE_LEVEL


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_command_line_edits(
    protocol: str, server: Address, clients: dict[str, Client], photograph: Edit, tmp_path: Path
) -> None:
    for name, content in zip(("image.jpg", "style.png", "mask.png"), photograph[:3]):
        (tmp_path / name).write_bytes(content)
    where = ["--host", server.host, "--port", str(server.port(protocol)), "--protocol", protocol]
    where += ["--model", server.model]
    files = ["--image", "image.jpg", "--style", "style.png", "--mask", "mask.png", "--strength", "0.8"]
    command = [sys.executable, "-m", "export.client", "edit", *where, *files]
    environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run([*command, "--output", "out.png"], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "out.png").read_bytes() == clients[protocol].edit(*photograph)


def test_the_command_line_says_what_is_wrong(
    server: Address, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--host", server.host, "--port", str(server.rest_port), "--model", server.model]
    assert client_module.main(["status", *where]) == 0
    assert re.fullmatch(rf"{server.model} version \d+: AVAILABLE\n", capsys.readouterr().out)
    (tmp_path / "text").write_text("not a picture")
    text, out = str(tmp_path / "text"), str(tmp_path / "out.png")
    for output, mask, says in (
        (out, text, "INVALID_ARGUMENT: image_bytes is not a JPEG or PNG file"),
        (out, "nowhere.png", "No such file or directory: 'nowhere.png'"),
        ("out.jpg", text, "--output must end in .png, got out.jpg"),
    ):
        arguments = ["--image", text, "--style", text, "--mask", mask, "--output", output]
        assert client_module.main(["edit", *where, *arguments]) == 1
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_rest_works_where_tensorflow_is_not_installed(server: Address, photograph: Edit, tmp_path: Path) -> None:
    for name, content in zip("ism", photograph[:3]):
        (tmp_path / name).write_bytes(content)
    program = f"""
import sys
for name in ("tensorflow", "keras", "grpc", "tensorflow_serving", "tcp_tf"):
    sys.modules[name] = None  # whoever imports it gets an ImportError
from export.client import connect
files = [open(name, "rb").read() for name in "ism"]
with connect("rest", {server.host!r}, {server.rest_port}, {server.model!r}) as client:
    client.wait_until_available()
    open("out.png", "wb").write(client.edit(*files))
try:
    connect("grpc")
except ImportError as error:
    assert "needs the extra `serve`" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True)
    assert Image.open(tmp_path / "out.png").size == Image.open(io.BytesIO(photograph.image)).size


def test_arrays(client: Client, in_process: Callable[[str, Arrays], Arrays]) -> None:
    inputs = arrays(1, batch=2, height=56, width=72)
    expected = in_process("masked_blend", inputs)["images"]
    edited = client.edit_arrays(**inputs)
    assert edited.dtype == np.float32
    np.testing.assert_allclose(edited, expected, atol=1e-5)
    same_look = client.edit_arrays(**{**inputs, "style_images": inputs["style_images"][1]})
    np.testing.assert_allclose(same_look[1], expected[1], atol=1e-5)
    one = client.edit_arrays(inputs["images"][0], inputs["style_images"][0], inputs["masks"][0, ..., 0], 0.5)
    assert one.shape == (56, 72, 3)
    levels = (inputs["images"][0] * 255).astype(np.uint8)
    blank = client.edit_arrays(levels, levels, np.zeros((56, 72), bool))
    alone = in_process(
        "swap", {"images": levels[None] / np.float32(255), "style_images": levels[None] / np.float32(255)}
    )
    np.testing.assert_allclose(blank, alone["images"][0], atol=1e-5)  # nothing masked: the picture with its own style


def test_arrays_that_no_server_would_take_are_not_sent() -> None:
    good = arrays(0)
    client = connect("rest", "nowhere.invalid")
    for changed, says in (
        ({"images": good["images"] * 255}, r"images must be within \[0, 1\], got 0.* to 25"),
        ({"strength": np.ones(2)}, r"strength \(2,\) do not fit together"),
        ({"strength": 1.5}, r"strength must be within \[0, 1\], got 1.5"),
        ({"style_images": np.zeros((2, 56, 56, 3))}, r"style_images \(2, 56, 56, 3\), .* do not fit together"),
        ({"masks": good["masks"] * np.nan}, r"masks must be within \[0, 1\], got nan to nan"),
        ({"masks": good["masks"][:, :8]}, r"masks \(1, 8, 64, 1\), strength \(1,\) do not fit together"),
    ):
        with pytest.raises(ValueError, match=says):
            client.edit_arrays(**{**good, **changed})
    with pytest.raises(ValueError, match="protocol must be one of"):
        connect("http")
    with pytest.raises(ValueError, match="deadline must be positive, got 0"):
        connect("rest", deadline=0)


@pytest.mark.parametrize("name", ("encode", "decode", "swap", "interpolate", "encode_bytes"))
def test_every_other_signature_answers(name: str, client: Client, in_process: Callable[[str, Arrays], Arrays]) -> None:
    some = arrays(2, batch=2, height=56, width=56)
    codes = in_process("encode", {"images": some["images"]})
    inputs: Arrays = {
        "encode": {"images": some["images"]},
        "decode": codes,
        "swap": {key: some[key] for key in ("images", "style_images")},
        "interpolate": {
            "images": some["images"],
            "first_style_images": some["style_images"],
            "second_style_images": some["images"],
            "weights": np.array([0.2, 0.7], np.float32),
        },
        "encode_bytes": {"image_bytes": strings(an_edit(1).image, b"broken")},
    }[name]
    answer, expected = client.predict(name, inputs), in_process(name, inputs)
    assert set(answer) == set(expected)
    for output, value in expected.items():
        if output == "error":
            assert list(answer[output]) == list(value) == [b"", b"image_bytes is not a JPEG or PNG file"]
        else:
            np.testing.assert_allclose(answer[output], value, atol=1e-5)


BAD_REQUESTS, BAD_FILES = bad_requests(), bad_files()


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_bad_request_gets_its_code_and_a_sentence(kind: str, client: Client) -> None:
    bad = BAD_REQUESTS[kind]
    if kind == "unknown input" and type(client).__name__ == "RestClient":
        pytest.skip("in columns the server passes over names that the signature does not know")
    with pytest.raises(ServingError) as caught:
        client.predict(bad.signature, bad.inputs)
    assert caught.value.code in bad.codes
    assert re.search(bad.says, caught.value.message), caught.value.message


def test_bad_files_do_not_take_their_neighbours_answers(client: Client) -> None:
    good = an_edit(3)
    alone = client.edit(*good)
    broken = [edit for edit, _ in BAD_FILES.values()]
    first, *answers, last = client.edit_many([good, *broken, good], batch_size=4)
    assert first == last == alone
    for (kind, (_, says)), answer in zip(BAD_FILES.items(), answers):
        assert isinstance(answer, ServingError), kind
        assert answer.code == "INVALID_ARGUMENT" and answer.message.startswith(says), (kind, answer)


def test_a_png_of_30000_px_takes_no_memory(server: Address, client: Client) -> None:
    if server.pid is None:
        pytest.skip("the process of a real server is not at hand")
    edit, says = BAD_FILES["huge PNG"]
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the high-water mark starts again
    before = memory(server.pid, "VmHWM")
    with pytest.raises(ServingError, match=says):
        client.edit(*edit)
    assert memory(server.pid, "VmHWM") - before < 200 << 20, "decoded it would be 2700 MB"


@pytest.mark.one_stack
def test_sizes_that_meet_in_a_batch_and_bad_neighbours_are_tried_again(
    server: Address, clients: dict[str, Client], in_process: Callable[[str, Arrays], Arrays]
) -> None:
    """Merged requests fail together. Six threads send good pictures of two sizes, two bad ones: no good one fails."""
    good = [arrays(seed, 1, *((56, 56) if seed % 2 else (64, 56))) for seed in range(6)]
    expected = [in_process("masked_blend", inputs)["images"] for inputs in good]
    bad = {**good[1], "strength": np.array([np.nan], np.float32)}
    problems: list[Any] = []

    def work(number: int) -> None:
        try:
            for _ in range(6):
                if number < len(good):
                    answer = clients["grpc"].predict("masked_blend", good[number], deadline=60)["images"]
                    np.testing.assert_allclose(answer, expected[number], atol=1e-5)
                else:
                    with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
                        clients["grpc"].predict("masked_blend", bad, deadline=60)
                    time.sleep(0.3)
        except BaseException as problem:
            problems.append((number, problem))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems


class Scripted:
    """A core for the emulator's sockets that answers Predict as a test says, request by request."""

    def __init__(self, *script: Any):
        self.script, self.requests = list(script), []  # type: list[Any], list[predict_pb2.PredictRequest]
        self.batcher = None
        self.model = type("Model", (), {"signatures": {}, "version": 1})()
        self.grpc_port, self.rest_port = serve(self, 0, 0)  # type: ignore[arg-type]

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        self.requests.append(request)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        step = step(request) if callable(step) else step
        if isinstance(step, StatusError):
            raise step
        return step

    def status(self, spec: Any) -> get_model_status_pb2.GetModelStatusResponse:
        state = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(state, StatusError):
            raise state
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(version=1, state=state)
        return response

    def client(self, **options: Any) -> Client:
        return connect("grpc", "127.0.0.1", self.grpc_port, **options)


def edited(request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    """Answers an edit with its own picture."""
    response = predict_pb2.PredictResponse()
    pictures = tf.make_ndarray(request.inputs["image_bytes"])
    response.outputs["image_bytes"].CopyFrom(tf.make_tensor_proto(pictures))
    response.outputs["error"].CopyFrom(tf.make_tensor_proto([b""] * len(pictures)))
    return response


def test_what_is_unavailable_is_tried_again() -> None:
    full = StatusError("UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full")
    core = Scripted(full, full, edited)
    with core.client() as client:
        assert client.edit(b"picture", b"", b"") == b"picture"
    assert len(core.requests) == 3


def test_what_stays_unavailable_is_given_up_at_the_deadline() -> None:
    core = Scripted(StatusError("UNAVAILABLE", "full"))
    started = time.monotonic()
    with core.client(deadline=1.0) as client, pytest.raises(ServingError, match="UNAVAILABLE: full"):
        client.edit(b"picture", b"", b"")
    assert time.monotonic() - started < 1.5
    assert 3 <= len(core.requests) <= 10, "the pauses grow"


def test_what_failed_in_the_graph_may_be_a_neighbours_fault() -> None:
    failed = StatusError("INVALID_ARGUMENT", "strength must be finite [[{{node check}}]]")
    core = Scripted(*[failed] * 4, edited)
    with core.client() as client:
        assert client.edit(b"picture", b"", b"") == b"picture"
    core = Scripted(failed)
    with core.client() as client, pytest.raises(ServingError, match="INVALID_ARGUMENT: strength must be finite"):
        client.edit(b"picture", b"", b"")
    assert len(core.requests) == 5


@pytest.mark.parametrize("code", ("NOT_FOUND", "RESOURCE_EXHAUSTED", "INTERNAL", "INVALID_ARGUMENT"))
def test_other_errors_are_not_tried_again(code: str) -> None:
    core = Scripted(StatusError(code, "once is enough"))
    with core.client() as client, pytest.raises(ServingError, match=f"{code}: once is enough"):
        client.predict("swap", {})
    assert len(core.requests) == 1


def test_a_deadline_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        time.sleep(2)
        return edited(request)

    core = Scripted(late)
    for protocol, port in (("grpc", core.grpc_port), ("rest", core.rest_port)):
        with connect(protocol, "127.0.0.1", port, deadline=0.3) as client:
            if protocol == "rest":
                client._outputs["swap"] = {"images": "DT_FLOAT"}  # type: ignore[attr-defined]
                monkeypatch.setattr(
                    "serving.rest_json.parse", lambda body, infos: (predict_pb2.PredictRequest(), False)
                )
            started = time.monotonic()
            with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
                client.predict("swap", {})
            assert time.monotonic() - started < 1.0


def test_a_batch_that_fails_for_one_picture_is_tried_again_one_by_one() -> None:
    def strict(request: predict_pb2.PredictRequest) -> Any:
        broken = b"broken" in tf.make_ndarray(request.inputs["image_bytes"])
        return StatusError("INVALID_ARGUMENT", "cannot decode [[{{node DecodeJpeg}}]]") if broken else edited(request)

    core = Scripted(strict)
    with core.client() as client:
        results = client.edit_many([Edit(name, b"", b"") for name in (b"a", b"broken", b"c", b"d")], batch_size=3)
    assert results[0] == b"a" and results[2:] == [b"c", b"d"]
    assert isinstance(results[1], ServingError) and "cannot decode" in results[1].message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_waiting_for_a_model(protocol: str) -> None:
    states = get_model_status_pb2.ModelVersionStatus.State
    missing = StatusError("NOT_FOUND", "Could not find any versions of model tcp")
    core = Scripted(missing, states.LOADING, states.AVAILABLE)
    with connect(protocol, "127.0.0.1", {"grpc": core.grpc_port, "rest": core.rest_port}[protocol]) as client:
        client.wait_until_available(5)
        assert client.status() == {1: "AVAILABLE"}
        core.script = [states.END]
        with pytest.raises(ServingError, match=r"did not become available: \{1: 'END'\}"):
            client.wait_until_available(0.3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nobody_listens(protocol: str) -> None:
    with connect(protocol, "127.0.0.1", 9, deadline=0.5) as client, pytest.raises(ServingError, match="UNAVAILABLE"):
        client.status()


def test_a_message_larger_than_grpcs_own_limit() -> None:
    pictures = np.random.default_rng(0).uniform(0, 1, (3, 640, 640, 3)).astype(np.float32)  # 15 MB each way

    def mirror(request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        response = predict_pb2.PredictResponse()
        response.outputs["images"].CopyFrom(request.inputs["images"])
        return response

    with Scripted(mirror).client() as client:
        np.testing.assert_array_equal(client.predict("any", {"images": pictures})["images"], pictures)


def test_a_server_that_comes_back_is_found_again() -> None:
    available = get_model_status_pb2.ModelVersionStatus.State.AVAILABLE
    core = Scripted(available)
    with core.client(deadline=10) as client:
        assert client.status() == {1: "AVAILABLE"}
        core.grpc_server.stop(None).wait()  # type: ignore[attr-defined]
        threading.Timer(0.7, lambda: serve(core, core.grpc_port, 0)).start()  # type: ignore[arg-type]
        started = time.monotonic()
        assert client.status() == {1: "AVAILABLE"}
        assert 0.5 < time.monotonic() - started < 5


def test_versions(server: Address, client: Client) -> None:
    (version,) = client.status()
    protocol = "grpc" if type(client).__name__ == "GrpcClient" else "rest"
    with connect(protocol, server.host, server.port(protocol), server.model, version) as exact:
        assert exact.status() == {version: "AVAILABLE"}
        assert exact.edit(*an_edit(4)) == client.edit(*an_edit(4))
    for model, number in ((server.model, version + 1), ("another", None)):
        absent = connect(protocol, server.host, server.port(protocol), model, number)
        with absent, pytest.raises(ServingError, match="NOT_FOUND"):
            absent.edit(*an_edit(4))
