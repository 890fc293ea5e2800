"""Visitors of the web page, some of them hostile, for as long as told; then what the server's memory did.

    python tests/runners/page_runner.py [--minutes 30] [--visitors 4] [--model pretrained/scenes64]

Speaks with the page's server as the page does: an event goes to `queue/join`, its answer comes as a stream. Visitors
arrive, choose samples and styles, paint, upload pictures good and bad, ask for the strip and the download, send events
that no page sends, and are replaced by new ones. Ends with 1 where an answer is the server's fault or where, after a
warm-up of a third of the time, resident memory grows by 1 MiB a minute or more.
"""

from __future__ import annotations

import argparse
import html
import http.client
import json
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

# A program beside the tests, run by itself.
from resident import memory, slope  # noqa: E402

from runners import fuzz_runner  # noqa: E402
from runners.fuzz_runner import Target  # noqa: E402

MOST_GROWTH = 1.0  # MiB a minute
EVENTS_EACH = 40  # of a visitor, before it leaves
OWN_FAULT = "server's log"  # in the page's words for an error that nobody foresaw
API = "/gradio_api"


class Problem(Exception):
    """An answer that is the server's fault."""


class Visitor:
    """One session; `act` does something that a person could, or that nobody should."""

    def __init__(self, address: str, events: dict[str, int], seed: int):
        self.address, self.events, self.random = address, events, random.Random(seed)
        self.session = uuid.UUID(int=self.random.getrandbits(128)).hex[:11]
        self.picture = 0  # number of the picture on the stage
        self.strokes: list[dict[str, Any]] = []

    def request(self, method: str, path: str, body: Optional[bytes] = None, kind: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            connection.request(method, path, body, {"content-type": kind} if kind else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def send(self, name: str, *values: Any) -> tuple[str, list[Any]]:
        """An event; returns what came of it, "right" or "wrong" (with a sentence) or "refused", and the outputs."""
        event = {"data": values, "fn_index": self.events[name], "session_hash": self.session, "event_data": None}
        status, content = self.request("POST", f"{API}/queue/join", json.dumps(event).encode(), "application/json")
        if status >= 500:
            raise Problem(f"{name}: {status} {content[:200]!r}")
        if status != 200:
            return "refused", []
        status, content = self.request("GET", f"{API}/queue/data?session_hash={self.session}")
        messages = [json.loads(line[5:]) for line in content.decode().splitlines() if line.startswith("data:")]
        ended = [message for message in messages if message["msg"] == "process_completed"]
        if status != 200 or len(ended) != 1:
            raise Problem(f"{name}: {status}, {len(ended)} answers: {content[:300]!r}")
        if not ended[0]["success"]:
            return "refused", []  # Gradio's own words for values of other types than the page's
        outputs = ended[0]["output"]["data"]
        line = html.unescape(str(outputs[-1]))
        if OWN_FAULT in line:
            raise Problem(f"{name} {values!r}: {line}")
        for output in outputs:
            scene = output.get("props", {}).get("scene") if isinstance(output, dict) else None
            if scene:
                self.picture, self.strokes = scene["picture"], []
        return ("wrong" if 'class="wrong"' in line else "right"), outputs

    def upload(self, data: bytes, name: str) -> Optional[dict[str, Any]]:
        edge = "----edge"
        head = f'--{edge}\r\ncontent-disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + f"\r\n--{edge}--\r\n".encode()
        status, content = self.request("POST", f"{API}/upload", body, f"multipart/form-data; boundary={edge}")
        if status >= 500:
            raise Problem(f"upload of {name}: {status} {content[:200]!r}")
        if status != 200:
            return None
        return {"path": json.loads(content)[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def file(self) -> tuple[bytes, str]:
        """A picture, or what only looks like one."""
        pick, side = self.random, self.random.choice((40, 64, 150, 400, 900))
        kind = pick.choice(("PNG", "JPEG", "WEBP"))
        data = fuzz_runner.picture_bytes(kind, size=(side, side * 3 // 4))
        if pick.random() < 0.5:
            data = fuzz_runner.changed(pick, Target(len, [data], ()))
        return data, f"picture.{kind.lower()}"

    def drawn(self) -> dict[str, Any]:
        return {"picture": self.picture, "active": self.random.randrange(4), "strokes": self.strokes}

    def paint(self) -> None:
        pick = self.random
        points = [pick.random() for _ in range(2 * pick.choice((1, 4, 30)))]
        region, width = pick.randrange(4), pick.uniform(0.05, 0.5)
        self.strokes.append({"r": region, "e": pick.random() < 0.1, "w": width, "p": points})

    def act(self) -> str:
        """Something; returns its name and what came of it."""
        pick = self.random
        what = pick.choices(
            ("paint", "sample", "style", "adjust", "uploaded", "add_style", "way", "download", "nonsense", "elsewhere"),
            (10, 2, 4, 4, 2, 2, 1, 2, 2, 1),
        )[0]
        if what == "paint":
            self.paint()
            return f"paint {self.send('paint', self.drawn())[0]}"
        if what == "sample":
            return f"sample {self.send('sample', pick.randrange(3))[0]}"
        if what == "style":
            return f"style {self.send('style', self.drawn(), pick.randrange(6))[0]}"
        if what == "adjust":
            keep = pick.random() < 0.5
            return f"adjust {self.send('adjust', self.drawn(), pick.uniform(0, 100), pick.uniform(0, 100), keep)[0]}"
        if what in ("uploaded", "add_style"):
            uploaded = self.upload(*self.file())
            if uploaded is None:
                return f"{what} refused"
            values = (uploaded,) if what == "uploaded" else (self.drawn(), uploaded)
            return f"{what} {self.send(what, *values)[0]}"
        if what == "way":
            return f"way {self.send('way', self.drawn(), pick.randrange(3, 10))[0]}"
        if what == "download":
            came, outputs = self.send("download", self.drawn())
            if came == "right" and isinstance(outputs[0], dict) and outputs[0].get("path"):
                status, content = self.request("GET", f"{API}/file={outputs[0]['path']}")
                if status != 200 or not content.startswith(b"\x89PNG"):
                    raise Problem(f"download: {status} {content[:100]!r}")
            return f"download {came}"
        if what == "nonsense":
            wrong: list[Any] = [None, 7, "x", [], {"picture": 1}, {"picture": self.picture, "strokes": [{"r": 1e9}]}]
            wrong += [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"path": "http://127.0.0.1/x"}]
            name = pick.choice(("paint", "sample", "style", "uploaded", "way", "download", "adjust"))
            count = {"sample": 1, "paint": 1, "uploaded": 1, "download": 1, "style": 2, "way": 2, "adjust": 4}[name]
            return f"nonsense {self.send(name, *(pick.choice(wrong) for _ in range(count)))[0]}"
        path = pick.choice((f"{API}/file=/etc/passwd", "/../../etc/passwd", f"{API}/api/paint", "/openapi.json"))
        status, content = self.request("GET", path)
        if status < 400 or b"root:" in content:
            raise Problem(f"{path}: {status} {content[:100]!r}")
        return "elsewhere refused"


def visit(address: str, events: dict[str, int], seed: int, end: float, outcomes: Counter[str], problems: list) -> None:
    """One visitor after another until `end` (of `time.monotonic`)."""
    number = 0
    while time.monotonic() < end:
        visitor = Visitor(address, events, 1000 * seed + number)
        number += 1
        try:
            visitor.send("arrive")
            for _ in range(EVENTS_EACH):
                if time.monotonic() >= end:
                    return
                outcomes[visitor.act()] += 1
        except Exception as problem:  # whatever a visitor meets is to be told at the end
            problems.append(f"visitor {seed}/{number}: {type(problem).__name__}: {problem}")


def events_of(address: str) -> dict[str, int]:
    """The page's events: name -> number."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/config")
    found = json.loads(connection.getresponse().read())["dependencies"]
    connection.close()
    return {event["api_name"]: event["id"] for event in found}


def run(pid: int, url: str, minutes: float, visitors: int) -> tuple[Counter[str], list[str], list[tuple[float, int]]]:
    """Loads the page at `url`; returns what came of the events, problems, and (seconds, resident bytes) over time."""
    address = urlsplit(url).netloc
    events = events_of(address)
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    began = time.monotonic()
    end = began + 60 * minutes
    threads = [
        threading.Thread(target=visit, args=(address, events, seed, end, outcomes, problems))
        for seed in range(visitors)
    ]
    for thread in threads:
        thread.start()
    samples = []
    while time.monotonic() < end:
        samples.append((time.monotonic() - began, memory(pid)))
        time.sleep(min(5.0, 2 * minutes))
    for thread in threads:
        thread.join()
    return outcomes, problems, samples


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="(%(default)s)")
    parser.add_argument("--visitors", type=int, default=4, help="at any time (%(default)s)")
    parser.add_argument("--model", default=str(ROOT / "pretrained" / "scenes64"), help="(%(default)s)")
    options = parser.parse_args()
    command = [sys.executable, "-m", "tcp_tf", "app", "--model", options.model, "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
    assert server.stdout is not None
    try:
        line = next((line for line in server.stdout if line.startswith("The page is at ")), None)
        if line is None:
            print("the page did not start", file=sys.stderr)
            return 1
        outcomes, problems, samples = run(server.pid, line.split()[4], options.minutes, options.visitors)
        alive = server.poll() is None
    finally:
        server.terminate()
        server.wait(30)
    growth = slope(samples)
    print(", ".join(f"{name}: {count}" for name, count in sorted(outcomes.items())))
    print(f"{sum(outcomes.values())} events of {options.visitors} visitors at a time in {options.minutes:g} minutes")
    held = [size >> 20 for _, size in samples]
    third = held[len(held) // 3]
    print(f"resident: {held[0]} MiB at first, {third} after a third, {held[-1]} at the end, {max(held)} at most")
    print(f"growth after a third of the time: {growth:.2f} MiB a minute")
    for problem in problems[:10]:
        print(problem, file=sys.stderr)
    if not alive:
        print("the server has ended", file=sys.stderr)
    return 0 if alive and outcomes and not problems and growth < MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
