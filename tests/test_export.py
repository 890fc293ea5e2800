"""The exported model answers as the model in this process does: in C, in a Session, and as a file that is audited."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from runners import Answer, CRunner, Request, answers_in_session, compile_c_runner, environment
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2

from export import audit, savedmodel, signatures, warmup
from tcp_tf import agreement, data, exported, images
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import PRECISIONS, Config
from tcp_tf.run_dir import load_autoencoder, read_config

ROOT = Path(__file__).resolve().parents[1]
STRIDE = 8  # of configs/tiny.yaml
SIZES = ((64, 64), (56, 72))  # height, width; 7 positions of the trunk are the least
BATCHES = (1, 3)
NAMES = ("masked_blend_bytes", "masked_blend", "swap", "interpolate", "encode", "encode_bytes", "decode")


def strings(*values: bytes) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def file(pixels: np.ndarray, **options: Any) -> bytes:
    """A PNG, or what `format=` says."""
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, **{"format": "PNG", **options})
    return written.getvalue()


def outputs(answer: Answer) -> dict[str, np.ndarray]:
    """An answer that is no error."""
    assert isinstance(answer, dict), answer
    return answer


def requests_of(batch: int, height: int, width: int) -> list[Request]:
    """One request per signature; files' sizes differ within the batch, those to edit are no multiples of the stride."""
    rng = np.random.default_rng(batch * height)

    def arrays(*shape: int) -> np.ndarray:
        return rng.uniform(0.0, 1.0, (batch, *shape)).astype(np.float32)

    def files(high: int, wide: int, *channels: int, more: int = 0) -> np.ndarray:
        shapes = [(high + more * i, wide + more * i, *channels) for i in range(batch)]
        return strings(*(file(rng.integers(0, 256, shape, np.uint8)) for shape in shapes))

    picture, style = (height, width, 3), (64, 80, 3)
    style_code = arrays(16) - 0.5
    return [
        (
            "masked_blend_bytes",
            {
                "image_bytes": files(height + 5, width + 3, 3, more=3),
                "style_image_bytes": files(*style, more=STRIDE),
                "mask_bytes": files(height + 5, width + 3, more=3),
                "strength": arrays(),
            },
        ),
        (
            "masked_blend",
            {
                "images": arrays(*picture),
                "style_images": arrays(*style),
                "masks": arrays(height, width, 1),
                "strength": arrays(),
            },
        ),
        ("swap", {"images": arrays(*picture), "style_images": arrays(*style)}),
        (
            "interpolate",
            {
                "images": arrays(*picture),
                "first_style_images": arrays(*style),
                "second_style_images": arrays(*picture),
                "weights": arrays(),
            },
        ),
        ("encode", {"images": arrays(*picture)}),
        ("encode_bytes", {"image_bytes": files(64, 64, 3)}),
        ("decode", {"content": arrays(height // STRIDE, width // STRIDE, 4) - 0.5, "style": style_code}),
    ]


REQUESTS = [request for batch in BATCHES for size in SIZES for request in requests_of(batch, *size)]


def in_process(model: AutoEncoder, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The answer by way of the model itself, with Pillow where there are files."""
    if name == "masked_blend_bytes":
        return {"image_bytes": [edit_alone(model, *files) for files in zip(*inputs.values())]}
    if name == "encode_bytes":
        pictures = np.stack([images.decode(each) for each in inputs["image_bytes"]])
        return model.encode(data.to_model(pictures))._asdict()
    if name == "decode":
        return {"images": np.clip((model.decode(**inputs) + 1) / 2, 0, 1)}
    inputs = {key: value * 2 - 1 if "images" in key else value for key, value in inputs.items()}
    if name == "encode":
        return model.encode(**inputs)._asdict()
    method: Callable[..., tf.Tensor] = getattr(model, name)
    return {"images": np.clip((method(*inputs.values()) + 1) / 2, 0, 1)}


def edit_alone(model: AutoEncoder, image: bytes, style: bytes, mask: bytes, strength: float) -> np.ndarray:
    """uint8 [H, W, 3]; the picture is reflected up to the stride at the bottom and the right."""
    picture, look, share = images.decode(image), images.decode(style), images.decode(mask)[..., :1]
    height, width = picture.shape[:2]
    missing = ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0))
    hybrid = model.masked_blend(
        data.to_model(np.pad(picture, missing, "reflect"))[None],
        data.to_model(look)[None],
        tf.constant(np.pad(share / 255, missing, "reflect")[None], tf.float32),
        tf.constant([strength]),
    )
    return data.to_uint8(hybrid[0, :height, :width])


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> AutoEncoder:
    return load_autoencoder(tiny_run)[0]


@pytest.fixture(scope="module")
def saved(tiny_export: Path) -> saved_model_pb2.SavedModel:
    return saved_model_pb2.SavedModel.FromString((tiny_export / "1" / "saved_model.pb").read_bytes())


@pytest.fixture(scope="module")
def in_c(tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CRunner]:
    """Takes requests, gives answers: one process for all tests here, which must survive every bad request."""
    runner = CRunner(compile_c_runner(tmp_path_factory.mktemp("c_api")), tiny_export / "1")
    try:
        yield runner
    finally:
        assert runner.close() == 0


@pytest.fixture(scope="module", params=["c_api", "session"])
def answers(
    request: pytest.FixtureRequest, tiny_export: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Answer]:
    """The exported model's answers to REQUESTS, from both ways of loading it as a server does."""
    if request.param == "c_api":
        return request.getfixturevalue("in_c")(REQUESTS)
    return answers_in_session(tiny_export / "1", REQUESTS, tmp_path_factory.mktemp("session"))


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_models_own(name: str, answers: list[Answer], model: AutoEncoder) -> None:
    compared = 0
    for (asked, inputs), answer in zip(REQUESTS, answers):
        if asked != name:
            continue
        answer = dict(outputs(answer))
        if "error" in answer:
            assert list(answer.pop("error")) == [b""] * len(inputs["image_bytes"])
        expected = in_process(model, name, inputs)
        assert set(answer) == set(expected)
        for key, value in answer.items():
            if key == "image_bytes":
                for png, pixels in zip(value, expected[key]):
                    assert png.startswith(b"\x89PNG")
                    difference = np.abs(images.decode(png).astype(int) - pixels)
                    # where a value lies between two levels, the last bit decides
                    assert difference.max() <= 1 and difference.mean() < 0.001
            else:
                assert value.dtype == np.float32
                np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-5)
        compared += 1
    assert compared == len(BATCHES) * len(SIZES)


def test_the_same_request_gives_the_same_bytes_whatever_its_neighbours(in_c: CRunner) -> None:
    name, inputs = next(each for each in REQUESTS if each[0] == NAMES[0] and len(each[1]["strength"]) == 3)
    alone = [{key: value[i : i + 1] for key, value in inputs.items()} for i in range(3)]
    asked = [(name, inputs), ("serving_default", inputs), *((name, each) for each in alone)]
    together, again, *single = map(outputs, in_c(asked))
    assert list(together["image_bytes"]) == list(again["image_bytes"])
    assert list(together["image_bytes"]) == [each["image_bytes"][0] for each in single]


def broken_files() -> list[tuple[str, str, bytes, str]]:
    """(what is wrong, which input it goes to, the file, a part of the sentence)."""
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    good = file(noise)
    bomb = good[:16] + (30_000).to_bytes(4, "big") * 2 + good[24:]
    huge = good[:16] + b"\xff" * 8 + good[24:]
    place = len(good) // 2
    flipped = good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :]
    jpeg = file(noise, format="JPEG")
    return [
        ("nothing", "image_bytes", b"", "image_bytes is empty"),
        ("a text", "image_bytes", b"hello, world\n" * 9, "image_bytes is not a JPEG or PNG file"),
        ("a WebP", "style_image_bytes", file(noise, format="WEBP"), "style_image_bytes is a WebP file"),
        ("a GIF", "mask_bytes", file(noise, format="GIF"), "mask_bytes is not a JPEG or PNG file"),
        ("a bomb", "image_bytes", bomb, "image_bytes: 30000 x 30000 pixels; at most 2097152 in all"),
        ("a bomb of a style", "style_image_bytes", bomb, "at most 16777216 in all are accepted"),
        ("a header beyond int32", "image_bytes", huge, "image_bytes: 4294967295 x 4294967295 pixels"),
        ("half a PNG", "image_bytes", good[: len(good) // 2], "image_bytes is damaged and cannot be decoded"),
        ("a flipped bit", "mask_bytes", flipped, "mask_bytes is damaged"),
        ("a JPEG's header", "image_bytes", jpeg[:40], "image_bytes is damaged"),
        ("only a signature", "image_bytes", good[:8], "image_bytes is damaged"),
        (
            "a small picture",
            "image_bytes",
            file(noise[:40]),
            "image_bytes: 64 x 40 pixels; each side must have at least",
        ),
        (
            "another mask",
            "mask_bytes",
            file(noise[:, :63]),
            "63 x 64 pixels; it must have the size of the image: 64 x 64",
        ),
        ("a thread of a style", "style_image_bytes", file(np.zeros((1, 1 << 18, 3), np.uint8)), "too long and narrow"),
    ]


def test_broken_files_get_a_sentence_and_leave_their_neighbours_alone(in_c: CRunner) -> None:
    noise = np.random.default_rng(6).integers(0, 256, (3, 64, 64, 3), np.uint8)
    keys = ("image_bytes", "style_image_bytes", "mask_bytes")
    good = dict(zip(keys, (file(each) for each in noise)))
    cases = broken_files()
    rows = [good, *({**good, key: value} for _, key, value, _ in cases), good, good]
    strength = np.full(len(rows), 0.5, np.float32)
    strength[-2:] = np.nan, 1.5
    batch = {key: strings(*(row[key] for row in rows)) for key in keys}
    requests: list[Request] = [(NAMES[0], {**batch, "strength": strength})]
    requests.append((NAMES[0], {**{key: strings(good[key]) for key in keys}, "strength": strength[:1]}))
    alone = [(what, value, part) for what, key, value, part in cases if key == "image_bytes" and "small" not in what]
    requests.append(("encode_bytes", {"image_bytes": strings(good["image_bytes"], *(value for _, value, _ in alone))}))
    together, single, encoded = map(outputs, in_c(requests))
    assert together["image_bytes"][0] == single["image_bytes"][0] != b""
    errors = [each.decode("ascii") for each in together["error"]]
    assert errors[0] == ""
    for (what, _, _, part), error, picture in zip(cases, errors[1:], together["image_bytes"][1:]):
        assert part in error and picture == b"", f"{what}: {error!r}"
    assert errors[-2:] == ["strength must be in [0, 1], got nan", "strength must be in [0, 1], got 1.5"]
    assert encoded["error"][0] == b"" and np.any(encoded["content"][0])
    assert not np.any(encoded["content"][1:]) and not np.any(encoded["style"][1:])
    for (what, _, part), error in zip(alone, encoded["error"][1:]):
        assert part.split(";")[0] in error.decode("ascii"), f"{what}: {error!r}"


def test_a_truncated_jpeg_is_recovered(in_c: CRunner) -> None:
    jpeg = file(np.random.default_rng(8).integers(0, 256, (64, 64, 3), np.uint8), format="JPEG")
    (answer,) = map(outputs, in_c([("encode_bytes", {"image_bytes": strings(jpeg, jpeg[: len(jpeg) * 3 // 4])})]))
    assert list(answer["error"]) == [b"", b""]
    whole, cut = answer["content"]
    assert np.abs(whole[0] - cut[0]).max() < 1e-5 < np.abs(whole[-1] - cut[-1]).max()


def test_bad_arrays_get_a_sentence_and_the_model_goes_on(in_c: CRunner) -> None:
    full = np.full((2, 64, 64, 3), 0.5, np.float32)
    nan = np.where(np.arange(2)[:, None, None, None] == 1, np.float32(np.nan), full)
    one, mask = np.ones(2, np.float32), full[..., :1]

    def blend(**changes: np.ndarray) -> Request:
        return "masked_blend", {"images": full, "style_images": full, "masks": mask, "strength": one, **changes}

    code, style = full[:, :8, :8, :1].repeat(4, 3), full[:, 0, 0, :1].repeat(16, 1)
    wide = np.broadcast_to(code[:1, :1, :1], (1, 300, 300, 4))
    cases: list[tuple[Request, str]] = [
        (("encode", {"images": full[:, :60]}), "images: 64 x 60 pixels; height and width must be multiples of 8"),
        (
            ("encode", {"images": full[:, :48]}),
            "64 x 48 pixels; height and width must be multiples of 8 and at least 56",
        ),
        (("encode", {"images": full * 255}), "images must be numbers in [0, 1]; divide levels of 0..255 by 255"),
        (("encode", {"images": nan}), "images must be numbers in [0, 1]"),
        (("encode", {"images": full[0]}), "[64,64,3] is not compatible with expected shape [?,?,?,3]"),
        (("encode", {"images": full.repeat(2, 3)}), "[2,64,64,6] is not compatible with expected shape [?,?,?,3]"),
        (("encode", {"images": full[:0]}), "images has no examples"),
        (("encode_bytes", {"image_bytes": strings()}), "image_bytes has no examples"),
        (
            ("swap", {"images": full, "style_images": full[:1]}),
            "style_images has another number of examples than images",
        ),
        (("swap", {"images": full, "style_images": full[:, :63]}), "style_images: 64 x 63 pixels"),
        (blend(masks=mask * 2.1), "masks must be numbers in [0, 1]"),
        (blend(masks=mask[:, :56]), "masks must have the height and width of images"),
        (blend(strength=one * 1.01), "strength must be numbers in [0, 1]"),
        (blend(strength=one * np.float32(np.nan)), "strength must be numbers in [0, 1]"),
        (blend(strength=one[:1]), "strength has another number of examples than images"),
        (("decode", {"content": code * np.float32(np.inf), "style": style}), "content must be finite"),
        (("decode", {"content": code[:, :0], "style": style}), "content must be at least 1 high and 1 wide"),
        (("decode", {"content": wide, "style": style[:1]}), "content must have at most 32768 positions"),
    ]
    *refused, last = in_c([*(request for request, _ in cases), blend()])
    for (request, part), answer in zip(cases, refused):
        assert isinstance(answer, str) and part in answer, f"{request[0]}: expected {part!r}, got {answer!r}"
    assert outputs(last)["images"].shape == full.shape


def test_the_audit_passes_and_counts_each_weight_once(tiny_export: Path, model: AutoEncoder) -> None:
    parameters = sum(int(np.prod(weight.shape)) for each in (model.encoder, model.generator) for weight in each.weights)
    assert audit.findings(tiny_export / "1", parameters) == []
    assert audit.findings(tiny_export / "1") == []
    assert "2 of 4 bytes were expected" in audit.findings(tiny_export / "1", 2)[-1]


def test_the_signatures_are_the_contract(saved: saved_model_pb2.SavedModel) -> None:
    found = {name: each for name, each in saved.meta_graphs[0].signature_def.items() if name != audit.INIT_OP}
    assert set(found) == {*NAMES, "serving_default"}
    assert set(found["serving_default"].inputs) == set(found["masked_blend_bytes"].inputs)

    def shapes(tensors: Any) -> dict[str, list[int]]:
        return {alias: [axis.size for axis in tensor.tensor_shape.dim] for alias, tensor in tensors.items()}

    picture, vector = [-1, -1, -1, 3], [-1]
    assert shapes(found["masked_blend"].inputs) == {
        **{"images": picture, "style_images": picture, "masks": [-1, -1, -1, 1], "strength": vector}
    }
    assert shapes(found["encode"].outputs) == {"content": [-1, -1, -1, 4], "style": [-1, 16]}
    assert shapes(found["decode"].inputs) == {"content": [-1, -1, -1, 4], "style": [-1, 16]}
    assert set(found["masked_blend_bytes"].inputs) == {"image_bytes", "style_image_bytes", "mask_bytes", "strength"}
    assert shapes(found["masked_blend_bytes"].outputs) == {"image_bytes": vector, "error": vector}


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda node: setattr(node, "op", "PyFunc"), "PyFunc calls Python"),
        (lambda node: setattr(node, "op", "OurOwnOp"), "OurOwnOp is not an operation of TensorFlow"),
        (lambda node: setattr(node, "device", "/device:GPU:0"), "is placed on /device:GPU:0"),
        (lambda node: setattr(node.attr["_XlaMustCompile"], "b", True), "must be compiled by XLA"),
    ],
)
def test_the_audit_finds_what_a_server_refuses(
    spoil: Callable[[Any], None], part: str, saved: saved_model_pb2.SavedModel, tiny_export: Path, tmp_path: Path
) -> None:
    changed = saved_model_pb2.SavedModel()
    changed.CopyFrom(saved)
    functions = changed.meta_graphs[0].graph_def.library.function
    spoil(next(node for each in functions if "encode" in each.signature.name for node in each.node_def))
    (tmp_path / "saved_model.pb").write_bytes(changed.SerializeToString())
    shutil.copytree(tiny_export / "1" / "variables", tmp_path / "variables")
    assert any(part in line for line in audit.findings(tmp_path))


def test_the_audit_looks_at_the_signatures(
    saved: saved_model_pb2.SavedModel, tiny_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = saved_model_pb2.SavedModel()
    changed.CopyFrom(saved)
    signature_def = changed.meta_graphs[0].signature_def
    del signature_def["serving_default"]
    signature_def["encode"].inputs["images"].tensor_shape.dim[0].size = 4
    signature_def["swap"].outputs["images"].dtype = tf.bfloat16.as_datatype_enum
    del signature_def["masked_blend"].inputs["strength"].tensor_shape.dim[:]
    (tmp_path / "saved_model.pb").write_bytes(changed.SerializeToString())
    shutil.copytree(tiny_export / "1" / "variables", tmp_path / "variables")
    assert sorted(audit.findings(tmp_path)) == [
        "encode: the batch axis of images is fixed at 4",
        "has no serving_default",
        "masked_blend: strength has no batch axis",
        "swap: images is bfloat16, not float32 or string",
    ]
    assert audit.main([str(tmp_path)]) == 1 and "has no serving_default" in capsys.readouterr().err
    assert audit.main([str(tmp_path / "nowhere")]) == 1 and "not a SavedModel" in capsys.readouterr().err


def length_delimited(message: bytes) -> list[tuple[int, bytes]]:
    """Fields of a protocol buffer message all of whose fields are length-delimited."""
    fields, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (message[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if message[at - 1] < 0x80:
                return value

    while at < len(message):
        key = varint()
        assert key & 7 == 2
        size = varint()
        fields.append((key >> 3, message[at : at + size]))
        at += size
    return fields


def test_every_warm_up_request_is_answered(tiny_export: Path, in_c: CRunner) -> None:
    requests: list[Request] = []
    for record in tf.data.TFRecordDataset(str(tiny_export / "1" / "assets.extra" / savedmodel.WARMUP)):
        ((number, predict_log),) = length_delimited(record.numpy())
        assert number == 6
        ((number, request),) = length_delimited(predict_log)
        assert number == 1
        (_, spec), *inputs = length_delimited(request)
        name = dict(length_delimited(spec))[3].decode()
        entries = [dict(length_delimited(entry)) for number, entry in inputs if number == 2]
        tensors = {entry[1].decode(): tensor_pb2.TensorProto.FromString(entry[2]) for entry in entries}
        requests.append((name, {key: tf.make_ndarray(tensor) for key, tensor in tensors.items()}))
    assert [name for name, _ in requests] == list(NAMES)
    for (name, _), answer in zip(requests, in_c(requests)):
        assert not any(outputs(answer).get("error", [])), f"{name}: {answer}"


def test_the_servers_own_interface_reads_the_warm_up_requests(tiny_export: Path) -> None:
    prediction_log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    records = tf.data.TFRecordDataset(str(tiny_export / "1" / "assets.extra" / savedmodel.WARMUP))
    logs = [prediction_log.PredictionLog.FromString(record.numpy()) for record in records]
    requests = [log.predict_log.request for log in logs]
    assert [request.model_spec.signature_name for request in requests] == list(NAMES)
    assert {request.model_spec.name for request in requests} == {warmup.MODEL_NAME}
    assert dict(requests[0].inputs).keys() == {"image_bytes", "style_image_bytes", "mask_bytes", "strength"}


def test_card_and_configuration_travel_along(tiny_export: Path, tiny_run: Path) -> None:
    extra = tiny_export / "1" / "assets.extra"
    assert read_config(extra) == read_config(tiny_run)
    card = (extra / savedmodel.MODEL_CARD).read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in card for name in NAMES) and "multiples of 8" in card
    assert not re.search(r"\{\w*\}", card)
    mode = (tiny_export / "1").stat().st_mode
    assert mode & 0o055 == 0o055, "a server runs as another user"


def test_versions_count_up_and_are_never_overwritten(tmp_path: Path) -> None:
    assert savedmodel.next_version(tmp_path / "none") == 1
    for name in ("2", "10", "latest", ".11-x"):
        (tmp_path / name).mkdir()
    assert savedmodel.next_version(tmp_path) == 11


def test_a_failed_export_leaves_nothing(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "4").mkdir()
    with pytest.raises(savedmodel.ExportError, match="4 exists already"):
        savedmodel.export(tiny_run, tmp_path, version=4)
    with pytest.raises(savedmodel.ExportError, match="version must be 1 or more, got 0"):
        savedmodel.export(tiny_run, tmp_path, version=0)
    with pytest.raises(savedmodel.ExportError, match="max_pixels must be at least 4096, .* got 4095"):
        savedmodel.export(tiny_run, tmp_path, max_pixels=4095)
    monkeypatch.setattr(signatures, "build", lambda *_: [])
    with pytest.raises(ValueError):
        savedmodel.export(tiny_run, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["4"]


def test_the_precision_is_the_one_asked_for(tiny_run: Path, tmp_path: Path, model: AutoEncoder) -> None:
    """Whatever the process computes in, and the networks can be read out of either."""
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        exact = savedmodel.export(tiny_run, tmp_path)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    coarse = savedmodel.export(tiny_run, tmp_path, precision="mixed_bfloat16")
    inputs = dict(requests_of(2, 64, 64))["masked_blend"]
    expected = in_process(model, "masked_blend", inputs)["images"]
    trained, config = load_autoencoder(tiny_run)
    folded = {precision: trained.folded(config, precision) for precision in PRECISIONS}
    rounded = in_process(folded["mixed_bfloat16"], "masked_blend", inputs)["images"]
    answers = []
    for directory in (exact, coarse):
        served = tf.saved_model.load(str(directory))  # must stay alive while its signature is used
        signature = served.signatures["masked_blend"]
        answers.append(signature(**{name: tf.constant(value) for name, value in inputs.items()})["images"])
    assert all(answer.dtype == tf.float32 for answer in answers)
    np.testing.assert_allclose(answers[0], expected, atol=1e-5)
    # Graph and single operations round in different places, so the two of less precision differ as well.
    distances = [float(np.sqrt(np.mean((answers[1] - other) ** 2))) for other in (rounded, expected)]
    assert distances[0] < 5e-3 and 2e-4 < distances[1] < 5e-3, distances
    cards = [(directory / "assets.extra" / savedmodel.MODEL_CARD).read_text("utf-8") for directory in (exact, coarse)]
    assert "| arithmetic | float32 |" in cards[0]
    assert re.search(r"\| arithmetic \| bfloat16; edits of 8 drawn scenes \d\d\.\d dB", cards[1])
    for directory, precision in zip((exact, coarse), PRECISIONS):
        for weight, other in zip(exported_weights(directory), weights(folded[precision])):
            np.testing.assert_array_equal(weight, other)
    sizes = [
        (directory / "variables" / "variables.data-00000-of-00001").stat().st_size for directory in (exact, coarse)
    ]
    assert 0.49 < sizes[1] / sizes[0] < 0.55


def weights(model: AutoEncoder) -> list[np.ndarray]:
    every = [*model.encoder.weights, *model.generator.weights]
    return [np.asarray(tf.cast(tf.convert_to_tensor(weight), tf.float32)) for weight in every]


def exported_weights(directory: Path) -> list[np.ndarray]:
    return weights(exported.load_autoencoder(directory)[0])


@pytest.mark.one_stack
def test_networks_of_an_older_export_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    """Its kernels were those that are trained."""
    trained, config = load_autoencoder(tiny_run)
    savedmodel.write(signatures.build(trained, config), tmp_path / "1")
    (tmp_path / "1" / "assets.extra").mkdir()
    shutil.copy(tiny_run / "config.yaml", tmp_path / "1" / "assets.extra")
    with pytest.raises(exported.ExportedModelError, match="1: exported by an older version of this project; export"):
        exported.load_autoencoder(tmp_path)


def test_a_precision_that_changes_pictures_is_refused(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "LEAST_PSNR", 99.0)
    with pytest.raises(
        savedmodel.ExportError, match=r"in bfloat16 this model's edits are \d\d\.\d dB .* 99 are wanted"
    ):
        savedmodel.export(tiny_run, tmp_path / "models", precision="mixed_bfloat16")
    assert not (tmp_path / "models").exists()
    with pytest.raises(ValueError, match="precision must be one of float32, mixed_bfloat16, got 'float16'"):
        savedmodel.export(tiny_run, tmp_path / "models", precision="float16")


def test_how_near_two_models_come(tiny_config: Config) -> None:
    exact, other = AutoEncoder.from_config(tiny_config), AutoEncoder.from_config(tiny_config)
    for ours, theirs in ((other.encoder, exact.encoder), (other.generator, exact.generator)):
        for target, source in zip(ours.weights, theirs.weights):
            target.assign(source)
    for network in (exact, other):  # small enough numbers that nothing is clipped
        kernel = network.generator.stages[-1].conv.kernel
        kernel.assign(1e-2 * tf.convert_to_tensor(kernel))
    assert agreement.measure(other, exact, 64, pictures=2) == (np.inf, np.inf, 2)
    bias = other.generator.stages[-1].bias
    bias.assign(tf.convert_to_tensor(bias) + 0.02)
    # 20 log10(2 / 0.02): pictures have a range of 2.
    mean, least, pictures = agreement.measure(other, exact, 64, pictures=2)
    np.testing.assert_allclose((mean, least, pictures), (40.0, 40.0, 2), atol=1e-3)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", "--run-dir", str(tmp_path), "--output", str(tmp_path / "models")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].endswith("not a run directory, it has no config.yaml")
    assert "Traceback" not in done.stderr


def test_the_example_in_the_docs_runs_without_this_project(tiny_export: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    ((example),) = re.findall(r"```python\n(.*?)```", text, re.S)
    rng = np.random.default_rng(7)
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8)).save(tmp_path / folder / f"{number}.png")
    Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8)).save(tmp_path / "style.jpg")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tcp").symlink_to(tiny_export)
    absent = "import sys\nfor name in ('tcp_tf', 'export', 'keras'):\n    sys.modules[name] = None\n"
    (tmp_path / "example.py").write_text(absent + example, encoding="utf-8")
    command = [sys.executable, "-I", "example.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    for number in range(3):
        assert Image.open(tmp_path / "edited" / f"{number}.png").size == (90, 70)
