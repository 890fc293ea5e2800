"""Edits pictures with a model that TensorFlow Serving serves, over gRPC or REST.

    python -m export.client edit --image a.jpg --style b.jpg --mask m.png --protocol rest --output edited.png
    python -m export.client status

Pictures travel as encoded bytes (any size, JPEG or PNG) or as float32 arrays N H W C in [0, 1] whose height and width
are multiples of the model's stride. Masks are 1 where the picture shall take the look of the style image. REST needs
nothing but NumPy; gRPC needs the extra `serve`.

A call has one deadline over all of its attempts. UNAVAILABLE (a server that starts, or whose queue is full) is tried
again with growing pauses, and so is what a batching server does to requests that it merged: all of them fail if their
shapes differ, or if one of them is bad. Answers do not depend on the attempt, so trying again is always safe.
"""

from __future__ import annotations

import abc
import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional, TypeVar, Union

import numpy as np

PROTOCOLS = ("grpc", "rest")
MODEL = "tcp"  # the name in serving/models.config
DEADLINE = 60.0  # seconds for one call with all its attempts
BATCH_SIZE = 8  # examples per request of edit_many; not above the server's max_batch_size

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between attempts; doubled every time, with jitter
_MERGED_ATTEMPTS = 5  # how often a request that may have failed for its neighbours' fault is sent in all
_DO_NOT_MERGE = (  # the server's words when it merged requests that do not go together, in size or in type
    "different shapes and padding is turned off",
    "Tensor concat operation failed",
)
_FAILED_IN_RUN = "{{node"  # the error came out of the graph, where merged requests fail together

T = TypeVar("T")


class ServingError(Exception):
    """A call that failed: `code` is a gRPC status name such as INVALID_ARGUMENT, `message` the server's sentence."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Edit(NamedTuple):
    """One picture to edit, as encoded bytes. `strength` in [0, 1] is how far the masked region goes over."""

    image: bytes
    style: bytes
    mask: bytes
    strength: float = 1.0


class Client(abc.ABC):
    """What both protocols share: retries, and the model's signatures as functions. Safe to use from many threads.

    Args:
        host: where the server listens.
        port: default the official image's for the protocol.
        model: the name that the server knows the model by.
        version: one version of it; default the newest.
        deadline: seconds for one call with all its attempts.
    """

    default_port: int

    def __init__(
        self,
        host: str = "localhost",
        port: Optional[int] = None,
        model: str = MODEL,
        version: Optional[int] = None,
        deadline: float = DEADLINE,
    ):
        if deadline <= 0:
            raise ValueError(f"deadline must be positive, got {deadline}")
        self.host, self.port = host, self.default_port if port is None else port
        self.model, self.version, self.deadline = model, version, deadline

    @abc.abstractmethod
    def _predict(self, signature: str, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        """One attempt at a Predict; raises ServingError."""

    @abc.abstractmethod
    def _status(self, timeout: float) -> dict[int, str]:
        """One attempt at the model's status: state by version; raises ServingError."""

    @abc.abstractmethod
    def close(self) -> None:
        """Gives the connections back."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def predict(
        self, signature: str, inputs: Mapping[str, np.ndarray], deadline: Optional[float] = None
    ) -> dict[str, np.ndarray]:
        """Runs a signature by its name.

        Args:
            inputs: arrays by input name; all have the same first dimension. Bytes are object arrays of `bytes`.
            deadline: seconds, default the client's.
        Returns:
            arrays by output name, strings as object arrays of `bytes`.
        Raises:
            ServingError: the server's, or DEADLINE_EXCEEDED, or UNAVAILABLE when nobody answered until the deadline.
        """
        return self._try(lambda timeout: self._predict(signature, inputs, timeout), deadline)

    def status(self, deadline: Optional[float] = None) -> dict[int, str]:
        """The state of every version: START, LOADING, AVAILABLE, UNLOADING or END. Raises ServingError."""
        return self._try(self._status, deadline)

    def wait_until_available(self, deadline: Optional[float] = None) -> None:
        """Returns as soon as a version (the client's, or any) is AVAILABLE; raises ServingError at the deadline."""
        end = time.monotonic() + (self.deadline if deadline is None else deadline)
        state: Union[dict[int, str], ServingError] = {}
        while (left := end - time.monotonic()) > 0:
            try:
                state = self._status(min(left, 5.0))
                if "AVAILABLE" in [value for key, value in state.items() if self.version in (None, key)]:
                    return
            except ServingError as error:
                if error.code not in ("UNAVAILABLE", "NOT_FOUND", "DEADLINE_EXCEEDED"):
                    raise
                state = error
            time.sleep(min(0.2, max(left, 0.0)))
        raise ServingError("DEADLINE_EXCEEDED", f"model {self.model} did not become available: {state}")

    def edit(self, image: bytes, style: bytes, mask: bytes, strength: float = 1.0) -> bytes:
        """Edits one encoded picture and returns a PNG.

        Raises:
            ServingError: INVALID_ARGUMENT with the model's reason for a picture that it cannot use.
        """
        (result,) = self.edit_many([Edit(image, style, mask, strength)])
        if isinstance(result, ServingError):
            raise result
        return result

    def edit_many(self, edits: Sequence[Edit], batch_size: int = BATCH_SIZE) -> list[Union[bytes, ServingError]]:
        """Edits encoded pictures: a PNG each, or the reason why not, in the same order.

        A batch that fails as a whole because of one broken picture is tried again one by one.

        Raises:
            ServingError: what no picture is to blame for, such as UNAVAILABLE.
        """
        results: list[Union[bytes, ServingError]] = []
        for start in range(0, len(edits), batch_size):
            batch = edits[start : start + batch_size]
            try:
                results += self._edit_batch(batch)
            except ServingError as error:
                if error.code != "INVALID_ARGUMENT":
                    raise
                results += [self._edit_alone(edit) for edit in batch] if len(batch) > 1 else [error]
        return results

    def _edit_alone(self, edit: Edit) -> Union[bytes, ServingError]:
        try:
            return self._edit_batch([edit])[0]
        except ServingError as error:
            if error.code != "INVALID_ARGUMENT":
                raise
            return error

    def _edit_batch(self, edits: Sequence[Edit]) -> list[Union[bytes, ServingError]]:
        inputs = {
            "image_bytes": _strings([edit.image for edit in edits]),
            "style_image_bytes": _strings([edit.style for edit in edits]),
            "mask_bytes": _strings([edit.mask for edit in edits]),
            "strength": np.array([edit.strength for edit in edits], np.float32),
        }
        outputs = self.predict("masked_blend_bytes", inputs)
        return [
            ServingError("INVALID_ARGUMENT", error.decode("utf-8", "replace")) if error else image
            for image, error in zip(outputs["image_bytes"], outputs["error"])
        ]

    def edit_arrays(
        self,
        images: np.ndarray,
        style_images: np.ndarray,
        masks: np.ndarray,
        strength: Union[float, Sequence[float], np.ndarray] = 1.0,
    ) -> np.ndarray:
        """`masked_blend` for arrays.

        Args:
            images: `[N, H, W, 3]` float in [0, 1] or uint8; or one picture, `[H, W, 3]`.
            style_images: the same, of another height and width if wanted; or one for all, `[H', W', 3]`.
            masks: `[N, H, W, 1]` or `[N, H, W]` float in [0, 1], uint8 or bool; or `[H, W]`.
            strength: one number, or `[N]`.
        Returns:
            float32 `[N, H, W, 3]` in [0, 1]; `[H, W, 3]` for one picture.
        Raises:
            ValueError: arrays that no server would take.
            ServingError: INVALID_ARGUMENT, for example for a height that is no multiple of the stride.
        """
        one = np.ndim(images) == 3
        pictures = _unit(images, "images")[None] if one else _unit(images, "images")
        styles, share = _unit(style_images, "style_images"), _unit(strength, "strength")
        styles = np.broadcast_to(styles, (len(pictures), *styles.shape)) if styles.ndim == 3 else styles
        regions = _unit(masks, "masks")
        regions = regions[None] if one else regions
        regions = regions[..., None] if regions.ndim == 3 else regions
        if (
            pictures.ndim != 4
            or regions.shape != (*pictures.shape[:3], 1)
            or (styles.ndim, len(styles)) != (4, len(pictures))
            or share.shape not in ((), (len(pictures),))
        ):
            shapes = {"images": images, "style_images": style_images, "masks": masks, "strength": strength}
            raise ValueError(
                f"{', '.join(f'{name} {np.shape(value)}' for name, value in shapes.items())} do not fit together: "
                "[N, H, W, 3], [N, H', W', 3], [N, H, W, 1] and [N] are wanted"
            )
        inputs = {
            "images": pictures,
            "style_images": styles,
            "masks": regions,
            "strength": np.broadcast_to(share, len(pictures)),
        }
        edited = self.predict("masked_blend", inputs)["images"]
        return edited[0] if one else edited

    def _try(self, attempt: Callable[[float], T], deadline: Optional[float]) -> T:
        """Calls `attempt(seconds left)` until it succeeds, fails for good, or the deadline is there."""
        end = time.monotonic() + (self.deadline if deadline is None else deadline)
        pause, merged = _FIRST_PAUSE, 1
        while True:
            try:
                return attempt(max(end - time.monotonic(), 0.001))
            except ServingError as error:
                if error.code == "INVALID_ARGUMENT" and _FAILED_IN_RUN in error.message and merged < _MERGED_ATTEMPTS:
                    merged += 1
                elif error.code != "UNAVAILABLE" and not any(words in error.message for words in _DO_NOT_MERGE):
                    raise
                wait = pause * random.uniform(0.5, 1.5)  # jitter, so that those who met do not meet again
                if time.monotonic() + wait >= end:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)


def connect(
    protocol: str = "grpc",
    host: str = "localhost",
    port: Optional[int] = None,
    model: str = MODEL,
    version: Optional[int] = None,
    deadline: float = DEADLINE,
) -> Client:
    """A client over "grpc" or "rest"; opens no connection yet. See `Client` for the arguments."""
    if protocol == "grpc":
        from export.client_grpc import GrpcClient  # loads TensorFlow, for its protocol buffers

        return GrpcClient(host, port, model, version, deadline)
    if protocol == "rest":
        from export.client_rest import RestClient

        return RestClient(host, port, model, version, deadline)
    raise ValueError(f"protocol must be one of {PROTOCOLS}, got {protocol!r}")


def _strings(values: Sequence[bytes]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _unit(array: Union[float, Sequence[float], np.ndarray], name: str) -> np.ndarray:
    """float32 in [0, 1] from floats, bytes or booleans."""
    array = np.asarray(array)
    unit = array.astype(np.float32) / 255 if array.dtype == np.uint8 else array.astype(np.float32)
    if not np.all((unit >= 0) & (unit <= 1)):  # also false for NaN
        raise ValueError(f"{name} must be within [0, 1], got {np.min(unit)} to {np.max(unit)}")
    return unit


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--host", default="localhost")
    shared.add_argument("--port", type=int, help="default 8500 for gRPC, 8501 for REST")
    shared.add_argument("--protocol", choices=PROTOCOLS, default="rest")
    shared.add_argument("--model", default=MODEL, help="the name that the server knows it by (%(default)s)")
    shared.add_argument("--version", type=int, help="default the newest")
    shared.add_argument("--deadline", type=float, default=DEADLINE, help="seconds, all attempts together (%(default)s)")
    parser = argparse.ArgumentParser(prog="python -m export.client", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", parents=[shared], help="print the state of the model's versions")
    edit = commands.add_parser("edit", parents=[shared], help="edit one picture")
    edit.add_argument("--image", type=Path, required=True)
    edit.add_argument("--style", type=Path, required=True, help="a picture with the look that is wanted")
    edit.add_argument("--mask", type=Path, required=True, help="a picture that is white where that look is wanted")
    edit.add_argument("--strength", type=float, default=1.0, help="0 to 1 (%(default)s)")
    edit.add_argument("--output", type=Path, required=True, help="the PNG to write")
    options = parser.parse_args(arguments)
    try:
        with connect(
            options.protocol, options.host, options.port, options.model, options.version, options.deadline
        ) as client:
            if options.command == "status":
                for version, state in sorted(client.status().items()):
                    print(f"{options.model} version {version}: {state}")
            else:
                if options.output.suffix.lower() != ".png":
                    raise ValueError(f"the answer is a PNG, so --output must end in .png, got {options.output}")
                image, style, mask = (path.read_bytes() for path in (options.image, options.style, options.mask))
                options.output.write_bytes(client.edit(image, style, mask, options.strength))
    except (ImportError, OSError, ServingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    from export.client import main as _main  # the module itself, not its copy named __main__: one ServingError

    sys.exit(_main())
