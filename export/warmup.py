"""Warm-up requests: what a server runs before it takes others, so that nobody's request pays for the first run.

The file is a TFRecord of `tensorflow.serving.PredictionLog` messages. Four small messages are written by hand here
(field numbers from tensorflow_serving/apis/{prediction_log,predict,model}.proto), so that exporting does not need
the package with the server's interfaces; a test reads them back with it where it is installed.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from export.signatures import Signature
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config

MODEL_NAME = "tcp"  # a server takes the signature from a warm-up request and ignores the model's name


def write(path: Path, served: list[Signature], autoencoder: AutoEncoder, config: Config) -> None:
    """One request of batch 1 per signature, at the training resolution."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in served:
            writer.write(_prediction_log(signature.name, inputs(signature, autoencoder, config)))


def inputs(signature: Signature, autoencoder: AutoEncoder, config: Config) -> dict[str, tf.compat.v1.TensorProto]:
    """A valid request of a signature. Arrays are constant: their message holds one number, whatever their size."""
    side = config.data.resolution
    sizes = {
        "content": [1, side // autoencoder.stride, side // autoencoder.stride, autoencoder.encoder.content_dim],
        "style": [1, autoencoder.encoder.style_dim],
    }
    file = tf.io.encode_png(tf.fill([side, side, 3], tf.constant(128, tf.uint8))).numpy()
    request = {}
    for spec in signature.inputs:
        if spec.dtype == tf.string:
            request[spec.name] = tf.make_tensor_proto([file])
        else:
            shape = sizes.get(spec.name, [1, side, side, spec.shape[3]] if spec.shape.rank == 4 else [1])
            request[spec.name] = tf.make_tensor_proto(0.5, tf.float32, shape)
    return request


def _prediction_log(signature_name: str, tensors: dict[str, tf.compat.v1.TensorProto]) -> bytes:
    model_spec = _field(1, MODEL_NAME.encode()) + _field(3, signature_name.encode())  # ModelSpec
    request = _field(1, model_spec)  # PredictRequest
    for name, tensor in sorted(tensors.items()):
        request += _field(2, _field(1, name.encode()) + _field(2, tensor.SerializeToString()))  # entry of a map
    return _field(6, _field(1, request))  # PredictionLog.predict_log, PredictLog.request


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protocol buffer message."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
