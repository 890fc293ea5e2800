"""The programs of `benchmarks.programs` on this machine's accelerator, by JAX's client; PyTorch beside them, in turns.

    python -m benchmarks.on_jax DIRECTORY --results benchmarks/results
    python -m benchmarks.on_jax DIRECTORY --results benchmarks/results --modes eager compiled+channels_last

Needs JAX, and PyTorch for modes; TensorFlow is not needed, and not loaded. What runs is the XLA program of the function
that TensorFlow would compile, by the XLA in JAX: the same arithmetic, another version of the compiler. Before a program
is timed, its first picture, or the terms of its first step, are compared with what TensorFlow computed on a CPU.

Compiling is a search for each convolution's algorithm on the device, seconds for a network. Without that search
(`xla_gpu_autotune_level=0`) a decode took 1.6 s instead of 5 ms on an H200. A training step has hundreds: see
QUICKER_SEARCH. What was found stays in DIRECTORY, for the next time on the same machine.

Single precision is what both sides take it to be on such a machine: products of TensorFloat-32, summed in float32.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some, too

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lib import xla_client  # there is no public way from a serialized program to JAX's client

from benchmarks import compare, measuring
from benchmarks.children import DECODE, ENCODE, STEP, STYLE_MAP, Request
from benchmarks.compare import FAIR
from benchmarks.programs import INDEX, drawn
from benchmarks.speed import write

jax.config.update("jax_enable_x64", True)  # TensorFlow counts steps in int64
ALIASES = re.compile(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)")
# Programs go to an accelerator's plug-in as StableHLO, which has no word for this; the same shape once more will do.
COPY = re.compile(r"mhlo\.copy (%\S+) : (tensor<[^>]*>)")
# Terms that depend on random draws, which XLA makes other numbers of.
DRAWN = {"g/patch_gan", "dp/real", "dp/fake", "dp/r1", "g/content_alignment", "gradients/g", "gradients/d"}
# A training step compiles in 70 s on an H200 with these, and was not done in 240 without (and another beside it).
QUICKER_SEARCH = [("xla_gpu_enable_triton_gemm", False), ("xla_gpu_autotune_level", 2)]
FOUND = "xla_gpu_per_fusion_autotune_cache_dir"
TOLERANCE = {"float32": 2e-2, "bfloat16": 2e-1}  # of the norm: TensorFloat-32 has ten bits, bfloat16 seven


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.on_jax", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="of `benchmarks.programs`")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="programs; a part of the name will do")
    parser.add_argument("--modes", nargs="*", default=[], help="of PyTorch, see `torch_cases.flags_of`")
    parser.add_argument("--rounds", type=int, default=3, help="how often all sides take turns (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed calls per side and round (%(default)s)")
    parser.add_argument("--threads", type=int, default=8, help="that compile at the same time (%(default)s)")
    parser.add_argument("--results", type=Path, help="directory to write to: `speed_gpu*.json`, `compare_gpu*.json`")
    return parser.parse_args(arguments)


class Program:
    """One compiled program and its inputs on the device; states that it returns are its inputs the next time."""

    def __init__(self, directory: Path, entry: dict[str, Any]):
        self.directory, self.entry = directory, entry
        serialized = gzip.decompress((directory / f"{entry['file']}.hlo.gz").read_bytes())
        computation = xla_client.XlaComputation(serialized)
        head = computation.as_hlo_text().partition("\n")[0]
        self.aliases = {int(output): int(place) for output, place in ALIASES.findall(head)}
        module = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
        module = COPY.sub(r"stablehlo.reshape \1 : (\2) -> \2", module)
        client = jax.devices()[0].client
        devices = xla_client.DeviceList(tuple(client.local_devices()[:1]))
        options = xla_client.CompileOptions()
        found = directory / "found"
        found.mkdir(exist_ok=True)
        options.env_option_overrides = [(FOUND, str(found)), *(QUICKER_SEARCH if entry["case"] == STEP else [])]
        self.executable = client.compile_and_load(module, devices, options)

    def load(self) -> None:
        """Puts the inputs on the device."""
        self.inputs = []
        for place, told in enumerate(self.entry["inputs"]):
            values = np.array(told["values"]) if "values" in told else drawn(told["draw"], told["shape"], place)
            self.inputs.append(jax.device_put(values.reshape(told["shape"]).astype(told["dtype"])))

    def forget(self) -> None:
        """Frees the inputs."""
        self.inputs = []

    def call(self, step: Optional[int] = None) -> list[Any]:
        """One run, waited for; `step` is written over the number that a training step is given."""
        if step is not None:
            place = self.entry["step"]
            self.inputs[place] = jax.device_put(np.array(step, self.entry["inputs"][place]["dtype"]))
        results = self.executable.execute_sharded(self.inputs).disassemble_into_single_device_arrays()
        outputs = [each[0] for each in results]
        for output, place in self.aliases.items():
            self.inputs[place] = outputs[output]
        outputs[0].block_until_ready()
        return outputs

    def difference(self) -> Optional[float]:
        """How far the first picture is from TensorFlow's, norm of the difference over norm; or the terms of the step.

        The largest of all outputs; None where nothing is known. Of a step it must be the first one after `load`.
        """
        pairs: list[tuple[Any, Any]]
        if self.entry["case"] == STEP:
            if "first" not in self.entry:
                return None
            outputs = self.call()
            names = sorted(self.entry["first"])  # as TensorFlow orders what a function returns in a dict
            return max(
                abs(float(mean) / self.entry["first"][name] - 1)
                for name, mean in zip(names, outputs)
                if name not in DRAWN
            )
        with np.load(self.directory / f"{self.entry['file']}.npz") as stored:
            pairs = [(stored[name], np.asarray(out)[:1]) for name, out in zip(stored.files, self.call())]
        return max(float(np.linalg.norm(b.astype(np.float32) - a) / np.linalg.norm(a)) for a, b in pairs)

    def memory(self) -> int:
        """Bytes of inputs, outputs and what lies between, together; inputs that become outputs once."""
        stats = self.executable.get_compiled_memory_stats()
        outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
        return int(stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes)

    def bytes_accessed(self) -> Optional[float]:
        """What all kernels together read and write, as XLA counts it: both ways of a condition, so None of a step."""
        if self.entry["case"] == STEP:
            return None
        costs = self.executable.cost_analysis()
        costs = costs[0] if isinstance(costs, (list, tuple)) else costs
        return costs.get("bytes accessed")

    def times(self, seconds: float) -> dict[str, Any]:
        """As `cases.timed`, or for a step `cases.training_step`."""
        if self.entry["case"] != STEP:
            return measuring.summary(measuring.measure(self.call, seconds, warm_up=2))
        phases = {}
        for name, phase in self.entry["phases"].items():
            share = seconds / len(self.entry["phases"])
            calls = measuring.measure(functools.partial(self.call, phase["step"]), share, warm_up=2)
            phases[name] = {"share": phase["share"], "flops": phase["flops"], **measuring.summary(calls)}
        return measuring.amortised(phases)


def best(function: Callable[..., Any], *operands: Any) -> float:
    """Seconds of the fastest of many calls of a compiled function."""
    compiled = jax.jit(function)
    return min(measuring.measure(lambda: compiled(*operands).block_until_ready(), 0.3, warm_up=3))


def ceiling(dtype: str) -> dict[str, Any]:
    """FLOP/s of a large matrix product and of the typical convolution of `cases.ceiling`, bytes/s of a large copy.

    8192 cubed, and 256 to 256 channels, 3x3, on 128 maps of 64 x 64, which fill a large accelerator; on a CPU the sizes
    of `cases.ceiling`.
    """
    key, gpu = jax.random.key(0), jax.devices()[0].platform != "cpu"
    side = 8192 if gpu else 2048
    square = jax.random.normal(key, [side, side], dtype)
    maps = jax.random.normal(key, [128 if gpu else 8, 64, 64, 256], dtype)
    kernel = jax.random.normal(key, [3, 3, 256, 256], dtype)
    line = jax.random.normal(key, [2**29 if gpu else 2**25], np.float32)

    def convolve(maps: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(maps, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return {
        "dtype": dtype,
        "matmul": 2 * side**3 / best(jnp.matmul, square, square),
        "convolution": 2 * maps.size * 9 * 256 / best(convolve, maps, kernel),
        "bandwidth": 2 * line.nbytes / best(lambda x: -x, line),
        "cpu": measuring.cpu_name(),
        "cores": measuring.cores(),
        "gpus": [jax.devices()[0].device_kind] if gpu else [],
        "jax": jax.__version__,
    }


def fair_step(entry: dict[str, Any]) -> bool:
    """Whether it is a training step by the Swapping Autoencoder's objective."""
    return entry["case"] == STEP and set(FAIR) <= set(entry["overrides"])


def comparable(entry: dict[str, Any]) -> bool:
    """Whether `reference_torch` has the same: no other blends, no other objective."""
    return fair_step(entry) or entry["case"] in (ENCODE, DECODE, STYLE_MAP)


def torch_side(entry: dict[str, Any], mode: str, directory: Path) -> Callable[[float], dict[str, Any]]:
    """The same case in PyTorch, with weights of its own; see `torch_cases.prepared`."""
    import torch

    from benchmarks import torch_cases

    torch.backends.cuda.matmul.allow_tf32 = True
    # In training its search tries ways that take seconds each, and was not done in four minutes on an H200.
    torch.backends.cudnn.benchmark = entry["case"] != STEP
    request = Request(
        entry["case"],
        entry["config"],
        [override for override in entry["overrides"] if not override.startswith("mixed_precision")],
        batch=entry["batch"],
        regions=entry["regions"],
        side=mode,
        weights=str(directory),
    )
    return torch_cases.prepared(request)


def compile_all(directory: Path, entries: Sequence[dict[str, Any]], threads: int) -> list[Optional[Program]]:
    """Several at a time; None for a program that cannot be compiled, with a line that says why."""
    begun = time.perf_counter()

    def compiled(entry: dict[str, Any]) -> Optional[Program]:
        try:
            program = Program(directory, entry)
        except jax.errors.JaxRuntimeError as error:
            print(f"{entry['file']}: {' '.join(str(error).split())[:400]}", flush=True)
            return None
        print(f"{time.perf_counter() - begun:6.1f} s: {entry['file']} compiled", flush=True)
        return program

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(compiled, entries))


def measure(program: Program, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one program in turns: {case, batch, regions, difference, sides: as in `compare.compare`}."""
    entry = program.entry
    program.load()
    difference = program.difference()
    sides: dict[str, Callable[[float], dict[str, Any]]] = {"ours": program.times}
    failed: dict[str, str] = {}
    for mode in options.modes if comparable(entry) else ():
        sides[mode] = torch_side(entry, mode, options.directory)
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, call in sides.items():
            if side in failed:
                continue
            try:
                rounds[side].append(call(options.seconds))
            except RuntimeError as problem:  # out of memory, or what a compiler cannot do
                failed[side] = " ".join(str(problem).split())[:200]
    results = {side: {"error": failed[side]} if side in failed else over_rounds(rounds[side]) for side in sides}
    if "ours" not in failed:
        costs = {"flops": entry["flops"], "bytes": program.bytes_accessed(), "peak_bytes": program.memory()}
        results["ours"] = {**results["ours"], "images": entry["images"], **costs}
    named = {name: entry[name] for name in ("case", "batch", "regions")}
    return {**named, "difference": difference, "sides": results}


def over_rounds(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`compare.over_rounds`, and of a step the phases' medians, too."""
    result = compare.over_rounds([{"peak_bytes": 0, **each} for each in rounds])
    result["peak_bytes"] = rounds[-1].get("peak_bytes", 0)  # the first one's may be a search for algorithms
    for name, phase in result.get("phases", {}).items():
        phase["median_s"] = statistics.median(each["phases"][name]["median_s"] for each in rounds)
    return result


def save(directory: Path, ceilings: dict[str, Any], measured: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """What there is so far: a file of ours and one of both sides for each precision."""
    for dtype, ceiling in ceilings.items():
        mine = [(entry, result) for entry, result in measured if entry["dtype"] == dtype]
        if not mine:
            continue
        first = mine[0][0]
        overrides = [override for override in first["overrides"] if override not in FAIR]
        head = {
            "config": first["config"],
            "overrides": overrides,
            "ceiling": {**ceiling, "tensorflow": first["tensorflow"]},
            "agreement": {result["case"]: result["difference"] for _, result in mine if result["difference"]},
        }
        suffix = "" if dtype == "float32" else f"_{dtype}"
        ours = [
            {"case": result["case"], "batch": result["batch"], **result["sides"]["ours"]}
            for entry, result in mine
            if result["regions"] == 1 and not fair_step(entry)
        ]
        write(directory / f"speed_gpu{suffix}.json", {**head, "results": ours})
        both = [result for entry, result in mine if len(result["sides"]) > 1 or fair_step(entry)]
        if both:
            write(directory / f"compare_gpu{suffix}.json", {**head, "results": both})


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit code: 0, 1 where a program failed or differs from what TensorFlow computed."""
    options = parse(arguments)
    entries = json.loads((options.directory / INDEX).read_text(encoding="utf-8"))
    entries = [entry for entry in entries if any(part in entry["file"] for part in options.only)]
    ceilings = {dtype: ceiling(dtype) for dtype in dict.fromkeys(entry["dtype"] for entry in entries)}
    for measured in ceilings.values():
        print(json.dumps(measured), flush=True)
    programs = compile_all(options.directory, entries, options.threads)
    results: list[tuple[dict[str, Any], dict[str, Any]]] = []
    wrong = False
    for entry, program in zip(entries, programs):
        if program is None:
            wrong = True
            continue
        result = measure(program, options)
        program.forget()
        results.append((entry, result))
        told, ours = compare.line(result), result["sides"]["ours"]
        wrong |= "error" in ours or (result["difference"] or 0.0) > TOLERANCE[entry["dtype"]]
        if "error" not in ours:
            rate = ours["flops"] / ours["median_s"]
            told += f"; {rate / 1e12:.0f} TFLOP/s, {rate / ceilings[entry['dtype']]['convolution']:.0%} of conv."
            if ours["bytes"]:
                moved = ours["bytes"] / ours["median_s"] / ceilings[entry["dtype"]]["bandwidth"]
                told += f", {moved:.0%} of memory"
        print(told + ("" if result["difference"] is None else f", differs by {result['difference']:.0e}"), flush=True)
        if options.results:
            save(options.results, ceilings, results)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
