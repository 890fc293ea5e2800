"""The rules of TensorFlow Serving's REST interface and of its batching, as the emulator keeps them.

What goes over a socket here runs against a real server too, see docs/serving.md.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import yaml
from google.protobuf import text_format

pytest.importorskip("tensorflow_serving", reason="needs the extra `serve`")

import grpc
from serving.batching import Batcher
from serving.emulator import Address, emulator
from serving.model import Arrays, Key
from serving.pictures import an_edit, b64
from serving.status import StatusError
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

pytestmark = pytest.mark.one_stack
ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "export" / "serving"


def exchange(server: Address, path: str, body: Optional[Any] = None) -> tuple[int, Any]:
    """HTTP status and decoded JSON; `body` is sent as it is if it is bytes, else as JSON."""
    connection = http.client.HTTPConnection(server.host, server.rest_port, timeout=60)
    if body is None:
        connection.request("GET", path)
    else:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body))
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def row(seed: int) -> dict[str, Any]:
    edit = an_edit(seed)
    files = dict(zip(("image_bytes", "style_image_bytes", "mask_bytes"), map(b64, edit[:3])))
    return {**files, "strength": edit.strength}


def test_rows_and_columns_are_the_same_request(server: Address) -> None:
    predict = f"/v1/models/{server.model}:predict"
    rows = [row(1), row(2)]
    status, by_row = exchange(server, predict, {"instances": rows})
    assert status == 200, by_row
    columns = {name: [each[name] for each in rows] for name in rows[0]}
    status, by_column = exchange(server, predict, {"inputs": columns, "signature_name": "masked_blend_bytes"})
    assert status == 200, by_column
    assert [list(each) for each in by_row["predictions"]] == [["error", "image_bytes"]] * 2
    for name in ("error", "image_bytes"):
        assert by_column["outputs"][name] == [each[name] for each in by_row["predictions"]]
    assert by_column["outputs"]["error"] == ["", ""], "its name does not end in _bytes: plain text"
    assert base64.b64decode(by_column["outputs"]["image_bytes"][0]["b64"]).startswith(b"\x89PNG")


def test_an_only_output_has_no_name(server: Address) -> None:
    code = {"content": np.zeros((7, 7, 4)).tolist(), "style": np.full(16, 0.25).tolist()}
    predict = f"/v1/models/{server.model}:predict"
    status, by_row = exchange(server, predict, {"signature_name": "decode", "instances": [code]})
    assert status == 200 and np.shape(by_row["predictions"]) == (1, 56, 56, 3)
    columns = {name: [value] for name, value in code.items()}
    status, by_column = exchange(server, predict, {"signature_name": "decode", "inputs": columns})
    assert status == 200 and np.shape(by_column["outputs"]) == (1, 56, 56, 3)


WRONG_BODIES: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "JSON Parse error"),
    "no JSON": (b"{", "JSON Parse error"),
    "no object": ([1, 2], "not object"),
    "neither": ({"signature_name": "swap"}, "Missing 'inputs' or 'instances' key"),
    "both": ({"instances": [row(1)], "inputs": row(1)}, "only one of"),
    "no rows": ({"instances": []}, "No values in 'instances'"),
    "rows that are no list": ({"instances": row(1)}, "list/array"),
    "signature that is no name": ({"signature_name": 5, "instances": [row(1)]}, "signature_name"),
    "unknown signature": ({"signature_name": "nonsense", "instances": [row(1)]}, '"nonsense.*" not found'),
    "plain list for several inputs": ({"instances": [1.0, 2.0]}, "expecting list of objects|expecting object"),
    "missing key": ({"instances": [{"strength": 1.0}]}, "keys must be equal to"),
    "unknown key": ({"instances": [{**row(1), "wrong": 1}]}, "does not have named input: wrong"),
    "missing column": ({"inputs": {"strength": [1.0]}}, "Missing named input"),
    "rows of several shapes": (
        {"signature_name": "encode", "instances": [np.zeros((2, 2, 3)).tolist(), np.zeros((2, 3, 3)).tolist()]},
        "Expecting (shape|tensor size)",
    ),
    "ragged": ({"signature_name": "encode", "inputs": [[[[1, 2, 3], [1, 2]]]]}, "unexpected size"),
    "bad base64": ({"instances": [{**row(1), "image_bytes": {"b64": "*"}}]}, "base64"),
    "number for a string": ({"instances": [{**row(1), "image_bytes": 5}]}, "not of expected type"),
    "string for a number": ({"instances": [{**row(1), "strength": "1"}]}, "not of expected type"),
    "object for a string": ({"instances": [{**row(1), "image_bytes": {"B64": ""}}]}, "base64"),
    "number beyond float32": ({"instances": [{**row(1), "strength": 1e300}]}, "without loss of precision"),
}


@pytest.mark.parametrize("kind", WRONG_BODIES)
def test_a_wrong_body_is_400_and_a_sentence(kind: str, server: Address) -> None:
    body, says = WRONG_BODIES[kind]
    status, answer = exchange(server, f"/v1/models/{server.model}:predict", body)
    assert status == 400 and list(answer) == ["error"]
    assert re.search(says, answer["error"]), answer


@pytest.mark.parametrize(
    ("path", "status", "says"),
    (
        ("/v1/models/another", 404, "Could not find any versions of model another"),
        ("/v1/models/{}/versions/999", 404, "Could not find version 999"),
        ("/v1/models/another:predict", 404, "Servable not found for request: Latest\\(another\\)"),
        ("/v1/models/{}/versions/999:predict", 404, "Servable not found for request: Specific\\({}, 999\\)"),
        ("/v1/models/{}/labels/canary:predict", 400, "Unrecognized servable version label: canary"),
        ("/v1/models/{}:dance", 400, "Malformed request: POST"),
        ("/v1/models/{}/versions/one", 400, "Malformed request: GET"),
        ("/v1/models/another/metadata", 404, "Servable not found for request: Latest\\(another\\)"),
    ),
)
def test_a_wrong_address(path: str, status: int, says: str, server: Address) -> None:
    path, says = path.replace("{}", server.model), says.replace("{}", server.model)
    answered, content = exchange(server, path, {"instances": [row(1)]} if ":" in path else None)
    assert answered == status
    assert re.search(says, content["error"]), content


def test_status_and_metadata(server: Address) -> None:
    status, content = exchange(server, f"/v1/models/{server.model}")
    assert status == 200
    (version,) = content["model_version_status"]
    assert version["state"] == "AVAILABLE" and version["status"]["error_code"] == "OK"
    status, content = exchange(server, f"/v1/models/{server.model}/versions/{version['version']}/metadata")
    assert status == 200 and content["model_spec"]["version"] == version["version"]
    strength = content["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["strength"]
    assert strength["dtype"] == "DT_FLOAT" and [dim["size"] for dim in strength["tensor_shape"]["dim"]] == ["-1"]

    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = server.model
        response = stub.GetModelMetadata(request)
        assert response.model_spec.version.value == int(version["version"])
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert response.metadata["signature_def"].Unpack(signatures)
        assert signatures.signature_def["decode"].inputs["style"].tensor_shape.dim[0].size == -1
        del request.metadata_field[:]
        with pytest.raises(grpc.RpcError, match="must specify at least one metadata_field"):
            stub.GetModelMetadata(request)


def test_the_output_filter(server: Address) -> None:
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest(output_filter=["style"])
        request.model_spec.name, request.model_spec.signature_name = server.model, "encode"
        request.inputs["images"].dtype = 1
        for size in (1, 56, 56, 3):
            request.inputs["images"].tensor_shape.dim.add(size=size)
        request.inputs["images"].float_val.append(0.5)  # the rest is filled with the last value
        assert list(stub.Predict(request).outputs) == ["style"]
        request.output_filter.append("style")
        with pytest.raises(grpc.RpcError, match="duplicate output tensor alias: style"):
            stub.Predict(request)
        request.output_filter[:] = ["looks"]
        with pytest.raises(grpc.RpcError, match="output tensor alias not found in signature: looks"):
            stub.Predict(request)


def test_health_is_the_models_status(server: Address) -> None:
    if server.host not in ("127.0.0.1", "localhost"):
        pytest.skip("the check runs beside the server")

    def healthy(port: int, model: str) -> bool:
        command = ["bash", str(CONFIGURATION / "health.sh"), str(port), model]
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0

    assert healthy(server.rest_port, server.model)
    assert not healthy(server.rest_port, "another")
    assert not healthy(9, server.model)


def test_the_emulator_without_batching_gives_the_same_answer(server: Address, tiny_export: Path) -> None:
    if server.pid is None:
        pytest.skip("a matter of the emulator alone")
    with emulator(tiny_export) as plain:
        body = {"instances": [row(1), row(2)]}
        path = f"/v1/models/{server.model}:predict"
        assert exchange(plain, path, body) == exchange(server, path, body)


# What follows is about the batching emulator in this process.

KEY: Key = ("double", ("twice",))


class Recorder:
    """A run that doubles `x`, remembers its batches, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, key: Key, inputs: Arrays) -> Arrays:
        self.gate.wait(10)
        self.batches.append(inputs["x"])
        if np.any(inputs["x"] < 0):
            raise StatusError("INVALID_ARGUMENT", "negative")
        return {"twice": 2 * inputs["x"]}


def together(batcher: Batcher, *requests: Any) -> list[Any]:
    """Runs requests at the same time; outputs or errors in their order."""
    results: list[Any] = [None] * len(requests)

    def work(place: int) -> None:
        try:
            results[place] = batcher.run(KEY, {"x": np.asarray(requests[place], np.float32)})["twice"].tolist()
        except StatusError as error:
            results[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
        time.sleep(0.01)  # keeps their order
    for thread in threads:
        thread.join()
    return results


def test_batches_are_concatenated_padded_and_split() -> None:
    record = Recorder()
    batcher = Batcher(record, allowed_sizes=(1, 4, 8), wait=0.2)
    assert together(batcher, [1], [2, 3], [4, 5]) == [[2], [4, 6], [8, 10]]
    assert [batch.tolist() for batch in record.batches] == [[1, 2, 3, 4, 5, 4, 4, 4]], "the last request's first row"
    assert batcher.merged == 3
    assert together(batcher, [7]) == [[14]]
    assert record.batches[1].tolist() == [7]


def test_a_full_batch_does_not_wait() -> None:
    record = Recorder()
    started = time.monotonic()
    assert together(Batcher(record, allowed_sizes=(1, 2), wait=30), [1], [2]) == [[2], [4]]
    assert time.monotonic() - started < 5


def test_merged_requests_fail_together() -> None:
    batcher = Batcher(Recorder(), allowed_sizes=(4,), wait=0.2)
    results = together(batcher, [1], [-1])
    assert [str(each) for each in results] == ["negative", "negative"]
    results = together(batcher, [[1, 2]], [[1, 2, 3]])
    assert [each.code for each in results] == ["FAILED_PRECONDITION"] * 2
    assert "different shapes and padding is turned off" in results[0].message
    assert together(batcher, [1]) == [[2]], "the next batch is well"


def test_what_batching_refuses() -> None:
    batcher = Batcher(Recorder(), allowed_sizes=(1, 2))
    for inputs, says in (
        ({"x": np.zeros(3)}, "Task size 3 is larger than maximum input batch size 2"),
        ({"x": np.float32(1)}, "must have at least one dimension"),
        ({"x": np.zeros(1), "y": np.zeros(2)}, "must have equal 0th-dimension size"),
    ):
        with pytest.raises(StatusError, match=says):
            batcher.run(KEY, inputs)


def test_a_full_queue_is_unavailable() -> None:
    record = Recorder()
    record.gate.clear()
    batcher = Batcher(record, allowed_sizes=(1,), max_batches=2, threads=1)
    threading.Timer(0.5, record.gate.set).start()
    results = together(batcher, [1], [2], [3], [4])
    assert results[:3] == [[2], [4], [6]], "one runs, two wait"
    assert results[3].code == "UNAVAILABLE"


# The configuration that is handed to a real server.


def test_models_config() -> None:
    config = text_format.Parse(
        (CONFIGURATION / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("tcp", "/models/tcp", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1


def test_batching_config_keeps_the_servers_rules() -> None:
    text = re.sub(r"#.*", "", (CONFIGURATION / "batching.config").read_text())
    numbers = {name: int(value) for name, value in re.findall(r"(\w+) \{ value: (\d+) \}", text)}
    allowed = [int(value) for value in re.findall(r"allowed_batch_sizes: (\d+)", text)]
    assert set(numbers) == {"max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"}
    assert allowed == sorted(set(allowed)) and allowed[-1] == numbers["max_batch_size"]
    assert "pad_variable_length_inputs" not in text


def test_monitoring_config() -> None:
    text = re.sub(r"#.*", "", (CONFIGURATION / "monitoring.config").read_text())
    assert re.sub(r"\s+", " ", text).strip() == (
        'prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }'
    )


def test_containers_name_files_that_exist_and_the_health_check() -> None:
    compose = yaml.safe_load((CONFIGURATION / "compose.yaml").read_text())
    kubernetes = list(yaml.safe_load_all((CONFIGURATION / "kubernetes.yaml").read_text()))
    (container,) = kubernetes[0]["spec"]["template"]["spec"]["containers"]
    commands = [service["command"] for service in compose["services"].values()] + [" ".join(container["args"])]
    checks = [service["healthcheck"]["test"][1:] for service in compose["services"].values()]
    checks += [container[probe]["exec"]["command"] for probe in ("startupProbe", "readinessProbe")]
    for check in checks:
        assert check == ["bash", "/config/health.sh", "8501", "tcp"]
    for text in (*commands, *map(" ".join, checks)):
        for name in re.findall(r"/config/([\w.]+)", text):
            assert (CONFIGURATION / name).is_file(), name
    images = [service["image"] for service in compose["services"].values()]
    assert [image.split(":")[0] for image in images] == ["tensorflow/serving"] * 2 and images[1].endswith("-gpu")
