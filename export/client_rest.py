"""The client over REST: columnar JSON with bytes in base64, by the standard library."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from export.client import DEADLINE, MODEL, Client, ServingError

_CODES = {  # the server's table from status codes to HTTP, read the other way round
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",  # a proxy's
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_CHUNK = 1 << 20  # bytes that are read at a time, so that the deadline is looked at in between


class RestClient(Client):
    """See `Client`. Connections are kept for the next call; as many are open as calls were made at the same time."""

    default_port = 8501

    def __init__(
        self,
        host: str = "localhost",
        port: Optional[int] = None,
        model: str = MODEL,
        version: Optional[int] = None,
        deadline: float = DEADLINE,
    ):
        super().__init__(host, port, model, version, deadline)
        self._path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
        self._path += f"/versions/{version}" if version is not None else ""
        self._idle: list[http.client.HTTPConnection] = []  # its append and pop are atomic
        self._outputs: dict[str, dict[str, str]] = {}  # type by output name by signature

    def close(self) -> None:
        """Closes the kept connections."""
        while self._idle:
            self._idle.pop().close()

    def _predict(self, signature: str, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        end = time.monotonic() + timeout
        types = self._output_types(signature, timeout)
        columns = {name: _to_json(np.asarray(value)) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        outputs = self._request("POST", f"{self._path}:predict", body, max(end - time.monotonic(), 0.001))["outputs"]
        if len(types) == 1:  # the server leaves the name of an only output out
            outputs = {next(iter(types)): outputs}
        return {name: _from_json(outputs[name], kind) for name, kind in types.items()}

    def _status(self, timeout: float) -> dict[int, str]:
        versions = self._request("GET", self._path, None, timeout)["model_version_status"]
        return {int(version["version"]): version["state"] for version in versions}

    def _output_types(self, signature: str, timeout: float) -> dict[str, str]:
        """The outputs of a signature and their types ("DT_FLOAT"), asked for once."""
        if signature not in self._outputs:
            metadata = self._request("GET", f"{self._path}/metadata", None, timeout)
            known = metadata["metadata"]["signature_def"]["signature_def"]
            if signature not in known:
                names = ", ".join(sorted(name for name in known if not name.startswith("__")))
                raise ServingError("INVALID_ARGUMENT", f"the model has no signature {signature!r}, only {names}")
            self._outputs[signature] = {name: info["dtype"] for name, info in known[signature]["outputs"].items()}
        return self._outputs[signature]

    def _request(self, method: str, path: str, body: Optional[bytes], timeout: float) -> Any:
        """One exchange; the connection is kept if it went well."""
        end = time.monotonic() + timeout
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = http.client.HTTPConnection(self.host, self.port)
        connection.timeout = timeout  # of connecting
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            chunks = []
            while chunk := response.read(_CHUNK):
                chunks.append(chunk)
                if time.monotonic() > end:
                    raise socket.timeout
        except socket.timeout:
            connection.close()
            where = f"{self.host}:{self.port}"
            raise ServingError("DEADLINE_EXCEEDED", f"no answer from {where} in {timeout:.3g} s") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reason = str(error) or type(error).__name__
            raise ServingError("UNAVAILABLE", f"{self.host}:{self.port}: {reason}") from error
        self._idle.append(connection)
        content = b"".join(chunks)
        if response.status != 200:
            raise ServingError(_CODES.get(response.status, "INTERNAL"), _reason(content) or response.reason)
        return json.loads(content)


def _reason(content: bytes) -> str:
    """The server's sentence, or the beginning of what a proxy wrote instead."""
    try:
        return str(json.loads(content)["error"])
    except (ValueError, TypeError, KeyError):
        return content[:200].decode("utf-8", "replace").strip()


def _to_json(value: np.ndarray) -> Any:
    """Nested lists of numbers, or of bytes as the server wants them."""
    if value.dtype != object:
        return value.tolist()
    flat = [{"b64": base64.b64encode(data).decode("ascii")} for data in value.ravel()]
    nested = np.empty(len(flat), object)
    nested[:] = flat
    return nested.reshape(value.shape).tolist()


def _from_json(value: Any, kind: str) -> np.ndarray:
    """The array that nested lists mean; strings become an object array of bytes."""
    if kind != "DT_STRING":
        return np.asarray(value, np.dtype({"DT_FLOAT": "float32"}.get(kind, kind[3:].lower())))
    leaves = [base64.b64decode(leaf["b64"]) if isinstance(leaf, dict) else leaf.encode("utf-8") for leaf in value]
    array = np.empty(len(leaves), object)
    array[:] = leaves
    return array
