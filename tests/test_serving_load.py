"""Many clients at once, and hostile ones: every answer is the right one, and the server outlives every request.

Both run against the emulator of TensorFlow Serving, or a real server (docs/serving.md). SERVING_FUZZ_SECONDS says how
long requests are made up, default 10.
"""

from __future__ import annotations

import http.client
import io
import itertools
import json
import math
import os
import random
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

pytest.importorskip("tensorflow_serving", reason="needs the extra `serve`")

import grpc
from resident import memory, slope
from serving.emulator import MERGED_PATH, Address
from serving.pictures import an_edit, arrays, b64, bad_files, bad_requests, strings
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from export.client import connect

pytestmark = [pytest.mark.slow, pytest.mark.one_stack]

CLIENTS, REQUESTS = 64, 2000
KINDS = 40  # different requests of each sort
SIDE = 56  # pixels of the arrays
CANNOT_MERGE = "Tensor concat operation failed"  # the server's words, INTERNAL, to all whose types met in a batch
FUZZ_SECONDS = float(os.environ.get("SERVING_FUZZ_SECONDS", "10"))
SIGNATURES = ("masked_blend_bytes", "masked_blend", "swap", "interpolate", "encode", "encode_bytes", "decode", "", "x")


def levels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(np.float32)


def distance(values: list[np.ndarray]) -> float:
    """The smallest of the largest differences between any two."""
    return min(float(np.abs(one - other).max()) for one, other in itertools.combinations(values, 2))


def test_64_clients_get_2000_answers_and_each_its_own(server: Address, capsys: pytest.CaptureFixture[str]) -> None:
    newest = max(int(entry.name) for entry in server.base_path.iterdir() if entry.name.isdigit())
    model = tf.saved_model.load(str(server.base_path / str(newest)))
    edits = [an_edit(seed, 60 + seed % 5, 64) for seed in range(KINDS)]
    inputs = [arrays(seed, 1, SIDE, SIDE) for seed in range(KINDS)]
    names = ("image_bytes", "style_image_bytes", "mask_bytes")
    files = [
        levels(
            model.signatures["masked_blend_bytes"](
                **{name: tf.constant([data]) for name, data in zip(names, edit)}, strength=tf.constant([edit.strength])
            )["image_bytes"].numpy()[0]
        )
        for edit in edits
    ]
    floats = [model.signatures["masked_blend"](**each)["images"].numpy() for each in map(_constants, inputs)]
    same_size = [value for value in files if value.shape == files[0].shape]
    assert distance(floats) > 0.01 and distance(same_size) > 10, "a mix-up would be seen"

    numbers, lock = itertools.count(), threading.Lock()
    latencies: dict[str, list[float]] = {"gRPC, arrays": [], "gRPC, files": [], "REST, files": []}
    problems: list[Any] = []
    start = threading.Barrier(CLIENTS + 1)

    def work() -> None:
        over_grpc = connect("grpc", server.host, server.grpc_port, server.model, deadline=120)
        over_rest = connect("rest", server.host, server.rest_port, server.model, deadline=120)
        start.wait()
        with over_grpc, over_rest:
            while (number := next(numbers)) < REQUESTS:
                which = number * 7 % KINDS
                sort = ("gRPC, arrays", "gRPC, arrays", "gRPC, files", "gRPC, arrays", "REST, files")[number % 5]
                began = time.monotonic()
                try:
                    if sort == "gRPC, arrays":
                        answer = over_grpc.predict("masked_blend", inputs[which])["images"]
                        wrong = answer.shape != floats[which].shape or np.abs(answer - floats[which]).max() > 1e-5
                    else:
                        client = over_grpc if sort == "gRPC, files" else over_rest
                        picture = levels(client.edit(*edits[which]))
                        wrong = picture.shape != files[which].shape or np.abs(picture - files[which]).max() > 1
                    if wrong:
                        problems.append((number, sort, "the answer is not that of this request"))
                except Exception as problem:
                    problems.append((number, sort, problem))
                with lock:
                    latencies[sort].append(time.monotonic() - began)

    with connect("grpc", server.host, server.grpc_port, server.model, deadline=120) as client:
        # A real server has run the model's warm-up requests by now; the emulator's first run would be in the figures.
        client.wait_until_available()
        client.predict("masked_blend", inputs[0])
        client.edit(*edits[0])
    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    assert not problems, problems[:5]
    assert sum(map(len, latencies.values())) == REQUESTS
    with capsys.disabled():
        print(f"\n{REQUESTS} requests of {CLIENTS} clients, batching on, in {seconds:.1f} s")
        for sort, measured in latencies.items():
            middle, high = np.percentile(measured, (50, 99)) * 1000
            print(f"  {sort}: {len(measured)} requests, p50 {middle:.0f} ms, p99 {high:.0f} ms")
        if server.pid is not None:
            merged = ask(server, "GET", MERGED_PATH, None)[1]
            print(f"  {int(merged)} requests so far shared their run with others")
            assert int(merged) > REQUESTS / 2


def _constants(inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in inputs.items()}


def ask(server: Address, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.host, server.rest_port, timeout=60)
    connection.request(method, path, body)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


class Fuzzer:
    """Makes requests up out of good ones. The same seed makes the same requests."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        good = [each._asdict() for each in (an_edit(1), an_edit(2, 57, 61))]
        self.files = [value for each in good for value in each.values() if isinstance(value, bytes)]
        self.files += [value for edit, _ in bad_files().values() for value in edit[:3]]
        self.inputs = [bad.inputs for bad in bad_requests().values()] + [arrays(1, 1, SIDE, SIDE)] * 4
        self.inputs += [{"content": np.zeros((1, 7, 7, 4), np.float32), "style": np.ones((1, 16), np.float32)}] * 4

    def damaged(self, data: bytes) -> bytes:
        """A file with octets changed, cut off, or doubled; often in its header."""
        octets, pick = bytearray(data), self.random
        for _ in range(pick.choice((0, 1, 1, 3, 20))):
            if octets:
                reach = min(len(octets), pick.choice((32, 64, 700, len(octets))))
                octets[pick.randrange(reach)] = pick.randrange(256)
        if pick.random() < 0.3:
            del octets[pick.randrange(len(octets) + 1) :]
        if pick.random() < 0.1:
            octets += octets[-pick.randrange(1, 200) :]
        return bytes(octets)

    def file_inputs(self) -> dict[str, Any]:
        batch = self.random.choice((1, 1, 2, 3))
        names = ("image_bytes", "style_image_bytes", "mask_bytes")
        inputs: dict[str, Any] = {
            name: strings(*(self.damaged(self.random.choice(self.files)) for _ in range(batch))) for name in names
        }
        numbers = (0.0, 0.5, 1.0, -1.0, 2.0, float("nan"), float("inf"), 1e-40)
        inputs["strength"] = np.array([self.random.choice(numbers) for _ in range(batch)], np.float32)
        return inputs

    def message(self) -> predict_pb2.PredictRequest:
        """A Predict over gRPC: good or bad inputs, of which something is then spoilt."""
        pick, request = self.random, predict_pb2.PredictRequest()
        request.model_spec.name = "tcp"
        by_files = pick.random() < 0.5
        request.model_spec.signature_name = SIGNATURES[0] if by_files else pick.choice(SIGNATURES)
        inputs = self.file_inputs() if by_files else pick.choice(self.inputs)
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value, shape=np.shape(value)))
        for _ in range(pick.choice((0, 1, 1, 2))):
            self.spoil(request)
        return request

    def spoil(self, request: predict_pb2.PredictRequest) -> None:
        pick = self.random
        if not request.inputs:
            return
        name = pick.choice(sorted(request.inputs))
        tensor = request.inputs[name]
        what = pick.randrange(8)
        if what == 0:
            tensor.dtype = pick.randrange(0, 30)
        elif what == 1:
            tensor.tensor_shape.dim.add(size=pick.choice((-1, 0, 1, 2, 1 << 40)))
        elif what == 2 and tensor.tensor_shape.dim:
            pick.choice(tensor.tensor_shape.dim).size = pick.choice((-5, 0, 1, 3, 8, 500, 100_000, 1 << 62))
        elif what == 3:
            tensor.tensor_content = tensor.tensor_content[: pick.randrange(len(tensor.tensor_content) + 1)]
        elif what == 4:
            tensor.tensor_shape.unknown_rank = True
        elif what == 5:
            del request.inputs[name]
        elif what == 6:
            request.inputs["".join(pick.choices("abc_é\x00", k=3))].CopyFrom(tensor)
        else:
            request.output_filter.append(pick.choice(("images", "error", "")))

    def body(self) -> bytes:
        """A body for REST: JSON that is nearly right, of which octets are then changed."""
        pick, inputs = self.random, self.file_inputs()
        columns: dict[str, Any] = {name: list(map(b64, inputs[name])) for name in list(inputs)[:3]}
        columns["strength"] = inputs["strength"].tolist()
        values: list[Any] = [None, True, "", "é", -1, 0.5, 1e400, 2**70, [], [[]], {}, {"b64": "?"}, {"b64": 5}]
        values += [[[1, 2], [3]], {"b64": "", "x": 1}, columns["strength"]]
        for _ in range(pick.choice((0, 1, 1, 2))):
            columns[pick.choice([*columns, "wrong"])] = pick.choice(values)
        document: Any = {"inputs": columns}
        if pick.random() < 0.5 and all(isinstance(value, list) for value in columns.values()):
            document = {"instances": [dict(zip(columns, row)) for row in zip(*columns.values())]}
        if pick.random() < 0.3:
            document[pick.choice(("signature_name", "inputs", "instances", "x"))] = pick.choice([*values, *SIGNATURES])
        if pick.random() < 0.05:
            return b"[" * 100_000
        text = json.dumps(document).encode()
        return self.damaged(text) if pick.random() < 0.3 else text


def test_the_server_outlives_made_up_requests(server: Address, capsys: pytest.CaptureFixture[str]) -> None:
    good, fuzzers = an_edit(9), [Fuzzer(seed) for seed in range(4)]
    end = time.monotonic() + FUZZ_SECONDS
    answers: Counter[str] = Counter()
    problems: list[Any] = []
    resident: list[tuple[float, int]] = []

    def over_grpc(fuzzer: Fuzzer) -> None:
        with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while time.monotonic() < end:
                request = fuzzer.message()
                try:
                    stub.Predict(request, timeout=60)
                    answers["gRPC OK"] += 1
                except grpc.RpcError as error:
                    code, details = error.code().name, error.details() or ""
                    answers[f"gRPC {code}"] += 1
                    victim = code == "INTERNAL" and CANNOT_MERGE in details
                    if len(details) < 10 or not (victim or code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")):
                        problems.append((code, details, str(request)[:2000]))

    def over_rest(fuzzer: Fuzzer) -> None:
        while time.monotonic() < end:
            body = fuzzer.body()
            status, content = ask(server, "POST", f"/v1/models/{server.model}:predict", body)
            answers[f"REST {status}"] += 1
            sentence = json.loads(content).get("error", "") if status != 200 else "it is answered"
            if len(sentence) < 10 or not (status in (200, 400) or (status == 500 and CANNOT_MERGE in sentence)):
                problems.append((status, content[:500], body[:500]))

    def bystander() -> None:
        """A client that asks for the same all the time and must always get the same."""
        with connect("grpc", server.host, server.grpc_port, server.model) as client:
            expected = client.edit(*good)
            while time.monotonic() < end:
                if client.edit(*good) != expected:
                    problems.append("another answer to the same request")
                if server.pid is not None:
                    resident.append((time.monotonic(), memory(server.pid)))
                time.sleep(0.1)

    def guarded(work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as problem:
            problems.append(repr(problem))

    jobs = [*zip((over_grpc, over_grpc, over_rest, over_rest), fuzzers), (bystander,)]
    threads = [threading.Thread(target=guarded, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with capsys.disabled():
        print(
            f"\nmade-up requests for {FUZZ_SECONDS:.0f} s:", ", ".join(f"{k}: {v}" for k, v in sorted(answers.items()))
        )
        if resident:
            held = [size >> 20 for _, size in resident]
            print(f"  memory of the server: {held[0]} MiB at first, {held[-1]} at the end, {max(held)} at most")
            growth = slope(resident[:: math.ceil(len(resident) / 1000)])
            print(f"  growth after a third of the time: {growth:.2f} MiB a minute")
    assert not problems, problems[:3]
    assert all(answers[kind] for kind in ("gRPC OK", "gRPC INVALID_ARGUMENT", "REST 200", "REST 400"))
    if resident:
        early = held[len(held) // 4]
        assert max(held[len(held) // 4 :]) - early < 500
        assert growth < 1 or FUZZ_SECONDS < 600, "a shorter run is all warm-up"
