"""The client over gRPC: needs the extra `serve`, whose stubs load TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Optional

import numpy as np

from export.client import DEADLINE, MODEL, Client, ServingError

try:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import (
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )
except ImportError as error:
    raise ImportError(
        f"gRPC needs the extra `serve` (pip install -e '.[serve]'); REST does without: {error}"
    ) from error

MAX_MESSAGE_BYTES = 256 << 20  # gRPC's own limit, 4 MiB, is less than two pictures of 512 px in float32


class GrpcClient(Client):
    """See `Client`. All threads share one channel."""

    default_port = 8500

    def __init__(
        self,
        host: str = "localhost",
        port: Optional[int] = None,
        model: str = MODEL,
        version: Optional[int] = None,
        deadline: float = DEADLINE,
    ):
        super().__init__(host, port, model, version, deadline)
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # Left to itself the channel lets minutes pass before it looks again for a server that was away.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._channel = grpc.insecure_channel(f"{host}:{self.port}", options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def _predict(self, signature: str, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest()
        self._name(request)
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(value), shape=np.shape(value)))
        response = self._call(self._prediction.Predict, request, timeout)
        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}

    def _status(self, timeout: float) -> dict[int, str]:
        request = get_model_status_pb2.GetModelStatusRequest()
        self._name(request)
        names = get_model_status_pb2.ModelVersionStatus.State.Name
        versions = self._call(self._model.GetModelStatus, request, timeout).model_version_status
        return {version.version: names(version.state) for version in versions}

    def _name(self, request: Any) -> None:
        request.model_spec.name = self.model
        if self.version is not None:
            request.model_spec.version.value = self.version

    @staticmethod
    def _call(method: Callable[..., Any], request: Any, timeout: float) -> Any:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise ServingError(error.code().name, error.details() or "") from error
