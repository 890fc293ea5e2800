"""The emulator of TensorFlow Serving: gRPC and REST on real sockets over one model directory.

    python tests/serving/emulator.py --model-name tcp --model-base-path DIR [--batching FILE] [--port 0]

prints `grpc PORT rest PORT` when the model is available. A port of 0 is a free one. From a test: `with emulator(DIR)`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a program, this folder is not a package

import grpc
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import rest_json
from serving.batching import Batcher
from serving.model import DEFAULT_SIGNATURE, Run, ServedModel, predict
from serving.status import HTTP_STATUS, StatusError, invalid

MERGED_PATH = "/emulator/merged"  # how many requests shared a run with others; the emulator's own
_MESSAGE_LIMIT = 1024  # characters of an error, beyond which the server cuts it off
_PREDICT = re.compile(r"(?i)/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:(classify|regress|predict)")
_STATUS = re.compile(r"(?i)/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?(?:/(metadata))?")


class Core:
    """The models that are served: here one name, at its highest version."""

    def __init__(self, name: str, base_path: Path, batching: Optional[dict[str, Any]]):
        versions = sorted(int(entry.name) for entry in base_path.iterdir() if entry.name.isdigit())
        if not versions:
            raise SystemExit(f"no versions of servable {name} found under base path {base_path}")
        self.name = name
        self.grpc_server: Optional[grpc.Server] = None
        self.model = ServedModel(base_path / str(versions[-1]), versions[-1])
        self.batcher = None if batching is None else Batcher(self.model.run, **batching)
        self.run: Run = self.model.run if self.batcher is None else self.batcher.run

    def find(self, spec: model_pb2.ModelSpec) -> ServedModel:
        """The model that a request names, or NOT_FOUND."""
        if spec.version_label:
            invalid(f"Unrecognized servable version label: {spec.version_label}")
        if spec.name != self.name or (spec.HasField("version") and spec.version.value != self.model.version):
            which = (
                f"Specific({spec.name}, {spec.version.value})" if spec.HasField("version") else f"Latest({spec.name})"
            )
            raise StatusError("NOT_FOUND", f"Servable not found for request: {which}")
        return self.model

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        if not request.HasField("model_spec"):
            invalid("Missing ModelSpec")
        return predict(self.find(request.model_spec), self.run, request)

    def metadata(self, spec: model_pb2.ModelSpec) -> get_model_metadata_pb2.GetModelMetadataResponse:
        model = self.find(spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in model.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = model.version
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        if spec.HasField("version") and (spec.name, spec.version.value) != (self.name, self.model.version):
            raise StatusError("NOT_FOUND", f"Could not find version {spec.version.value} of model {spec.name}")
        if spec.name != self.name:
            raise StatusError("NOT_FOUND", f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        available = get_model_status_pb2.ModelVersionStatus.State.AVAILABLE
        response.model_version_status.add(version=self.model.version, state=available).status.error_code = 0
        return response


class _Grpc(
    prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer
):  # Classify, Regress and the others answer UNIMPLEMENTED
    def __init__(self, core: Core):
        self.core = core

    def Predict(self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext) -> Any:
        try:
            return self.core.predict(request)
        except StatusError as error:
            self._abort(context, error)

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            if not request.metadata_field:
                invalid("GetModelMetadataRequest must specify at least one metadata_field")
            for name in request.metadata_field:
                if name != "signature_def":
                    invalid(f"Metadata field {name} is not supported")
            return self.core.metadata(request.model_spec)
        except StatusError as error:
            self._abort(context, error)

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return self.core.status(request.model_spec)
        except StatusError as error:
            self._abort(context, error)

    @staticmethod
    def _abort(context: grpc.ServicerContext, error: StatusError) -> NoReturn:
        message = error.message
        if len(message) > _MESSAGE_LIMIT:
            message = message[:_MESSAGE_LIMIT] + "...TRUNCATED"
        context.abort(grpc.StatusCode[error.code], message)
        raise AssertionError("abort raises")


class _Rest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    core: Core

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the tests' output is read by people."""

    def _respond(self, handler: Any) -> None:
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(int(length) if length.isdigit() else 0)
        try:
            status, content = 200, handler(body)
        except StatusError as error:
            status, content = HTTP_STATUS.get(error.code, 500), json.dumps({"error": error.message}).encode()
        except Exception as error:  # a fault of the emulator; the tests look for 500
            status, content = 500, json.dumps({"error": repr(error)}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _spec(self, match: re.Match[str]) -> model_pb2.ModelSpec:
        spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match[1] or ""))
        if match[2]:
            if int(match[2]) >= 1 << 63:
                invalid(f"Failed to convert version: {match[2]} to numeric.")
            spec.version.value = int(match[2])
        if match[3]:
            spec.version_label = urllib.parse.unquote(match[3])
        return spec

    def _get(self, body: bytes) -> bytes:
        if self.path == MERGED_PATH:
            return json.dumps(0 if self.core.batcher is None else self.core.batcher.merged).encode()
        match = _STATUS.fullmatch(self.path)
        if not match:
            invalid(f"Malformed request: GET {self.path}")
        if not match[1]:
            invalid("Missing model name in request.")
        if not match[4]:
            status = self.core.status(self._spec(match))
            document = json_format.MessageToDict(status, preserving_proto_field_name=True)
            for version in document["model_version_status"]:  # the server gives values that are the default, too
                version["status"] = {"error_code": "OK", "error_message": "", **version.get("status", {})}
            return json.dumps(document).encode()
        response = self.core.metadata(self._spec(match))
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        parts = (
            json_format.MessageToDict(message, preserving_proto_field_name=True)
            for message in (response.model_spec, signatures)
        )
        return json.dumps(dict(zip(("model_spec", "metadata"), (next(parts), {"signature_def": next(parts)})))).encode()

    def _post(self, body: bytes) -> bytes:
        match = _PREDICT.fullmatch(self.path)
        if not match:
            invalid(f"Malformed request: POST {self.path}")
        if match[4].lower() != "predict":
            raise StatusError("UNIMPLEMENTED", f"{match[4]} is not emulated")
        spec = self._spec(match)
        request, rows = rest_json.parse(body, lambda name: self._inputs(spec, name))
        spec.signature_name = request.model_spec.signature_name
        request.model_spec.CopyFrom(spec)
        return rest_json.answer(self.core.predict(request), rows)

    def _inputs(self, spec: model_pb2.ModelSpec, name: str) -> Mapping[str, meta_graph_pb2.TensorInfo]:
        signatures = self.core.find(spec).signatures
        name = name or DEFAULT_SIGNATURE
        if name not in signatures:
            invalid(f'Serving signature name: "{name}" not found in signature def')
        if not signatures[name].inputs:
            invalid(f"Failed to get input map for signature: {name}")
        return signatures[name].inputs


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # as many clients may knock at once


def serve(core: Core, grpc_port: int, rest_port: int) -> tuple[int, int]:
    """Starts both interfaces on localhost in the background and returns their ports."""
    server = grpc.server(
        futures.ThreadPoolExecutor(256),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    servicer = _Grpc(core)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    grpc_port = server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    server.start()
    core.grpc_server = server  # lives as long as the core
    rest = _HttpServer(("127.0.0.1", rest_port), type("Rest", (_Rest,), {"core": core}))
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    return grpc_port, rest.server_address[1]


@dataclass(frozen=True)
class Address:
    """Where a server listens, and what it serves; `pid` is the emulator's process, None for a real server."""

    host: str
    grpc_port: int
    rest_port: int
    model: str
    base_path: Path
    pid: Optional[int]

    def port(self, protocol: str) -> int:
        return {"grpc": self.grpc_port, "rest": self.rest_port}[protocol]


@contextlib.contextmanager
def emulator(base_path: Path, model: str = "tcp", batching: Optional[dict[str, Any]] = None) -> Iterator[Address]:
    """Runs the emulator in a process of its own, which knows nothing of this project.

    Args:
        base_path: holds the numbered versions.
        batching: arguments of `Batcher`; None turns batching off.
    """
    command = [sys.executable, __file__, "--model-name", model, "--model-base-path", str(base_path)]
    if batching is not None:
        command += ["--batching", json.dumps(batching)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["MALLOC_ARENA_MAX"] = "2"  # glibc would let each of the many threads keep memory of its own
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=base_path, env=environment)
    assert process.stdout is not None
    try:
        words = process.stdout.readline().split()
        if words[::2] != ["grpc", "rest"]:
            raise RuntimeError(f"the emulator did not start: {words}, exit status {process.wait(10)}")
        yield Address("127.0.0.1", int(words[1]), int(words[3]), model, base_path, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()


def real_server() -> Optional[Address]:
    """The server that the environment names, to run the same tests against; None where TF_SERVING_HOST is not set."""
    host, get = os.environ.get("TF_SERVING_HOST"), os.environ.get
    if not host:
        return None
    base_path = Path(os.environ["TF_SERVING_MODEL_DIR"])  # what it serves, as seen from here
    ports = int(get("TF_SERVING_GRPC_PORT", "8500")), int(get("TF_SERVING_REST_PORT", "8501"))
    return Address(host, *ports, get("TF_SERVING_MODEL_NAME", "tcp"), base_path, None)


def main() -> None:
    """Serves until the process is told to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-name", default="tcp")
    parser.add_argument("--model-base-path", type=Path, required=True)
    parser.add_argument("--batching", type=json.loads, help="arguments of Batcher as JSON; without it no batching")
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--rest-port", type=int, default=0)
    arguments = parser.parse_args()
    core = Core(arguments.model_name, arguments.model_base_path, arguments.batching)
    ports = serve(core, arguments.grpc_port, arguments.rest_port)
    print(f"grpc {ports[0]} rest {ports[1]}", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
