"""docs/speed.md from the measurements: no figure in it is typed by hand.

    python -m benchmarks.report

reads every JSON file of `benchmarks/results/` that `benchmarks.speed`, `compare`, `scaling` and `precision` wrote, in
the order of their names, and writes the page and, with matplotlib (extra `bench`), one plot per sweep and one of loss
curves into `docs/pictures/`. What was not measured is named as such.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from benchmarks import speed
from benchmarks.children import ROOT, TRAINING
from benchmarks.compare import FAIR

RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "speed.md"
PICTURES, CURVES = "pictures", "precision.svg"
PRECISIONS = ("float32", "mixed_bfloat16")
NOT_MEASURED = "Not measured."
GIB = 2**30

INTRODUCTION = """\
# Speed

Written by `python -m benchmarks.report` from the files in `benchmarks/results/`; every figure is from a measurement
there. To measure a machine of your own, in the project's environment:

    python -m benchmarks.speed --json benchmarks/results/speed.json
    python -m benchmarks.compare --json benchmarks/results/compare.json        # needs the extra `bench` (PyTorch)
    python -m benchmarks.scaling --json benchmarks/results/scaling.json
    python -m benchmarks.precision --json benchmarks/results/precision.json
    python -m benchmarks.report

A machine with an accelerator and without TensorFlow can be measured, too: `python -m benchmarks.programs` writes the
cases as XLA programs, and `python -m benchmarks.on_jax` runs them there by the XLA in JAX, beside PyTorch. *Of memory*
is then the share of the speed of a large copy that the reads and writes of all kernels, as XLA counts them, come to;
ceilings are measured with larger sizes (a product of 8192 cubed, 128 maps). That is how the GPU's figures below were
made: they hold for what XLA compiles, not for TensorFlow's own kernels. `train.xla: true` compiles a training step's
gradients, in the ways that XLA is good at: filters and resizes as sums of shifted maps. They are the plain ones to 1e-5
(`tests/test_model.py`). A step of four pictures compiled so takes 51 ms on an H200 (below); what TensorFlow's own
kernels take there has not been measured.

Every case runs in a process of its own. Times are medians, the spread is the distance of the quartiles over the
median; memory is the process's peak (the GPU's, where there is one). FLOPs are those of convolutions and matrix
products, counted in the traced graph, a multiplication and an addition as two. *Of conv.* and *of matmul* are shares
of what the same machine reaches in the same run with a convolution (256 channels, 3x3, eight maps of 64 x 64) and a
matrix product (2048 cubed) of the same dtype. Every convolution counts by its plain sum. Wide ones of 3x3 are computed
with a quarter of the multiplications (`tcp_tf/winograd.py`, on a CPU), so shares above 100% can be.

Encode, decode and `masked_blend` are those of the folded networks that editors and exports use, whose kernels are kept
as they are convolved with; PyTorch's side scales its weights in every call, as the Swapping Autoencoder's published
code does. The XLA programs are of the networks as they are trained.

`train.concurrent: 2` works on two halves of a batch at the same time, each on its share of the CPU's cores. The
operations of small networks are too short to be divided among cores; large networks keep all of them busy as it is, but
for some 5 % of their time (`configs/church256.yaml` on a Zen 5), and take 1.6 GiB more with it.

On x86 CPUs without AVX512-VNNI (below: family 25, model 1), TensorFlow takes oneDNN's kernels only when asked to, as
`train.py` does (`tcp_tf/onednn.py`), and so do the training cases here. The figures of that CPU below are from before
it did.

`generator_part` and `discriminator_part` are one side's gradients and optimizer step alone; `training_step` is the
whole step with the lazy terms (R1, code consistency, content alignment) by their share of the steps. It makes the
pictures once for both sides. `session/masked_blend` is the exported SavedModel in a Session, which is how TensorFlow
Serving runs it. `data_pipeline` reads a folder of JPEG photographs of 1.5 times the training pictures'
size.
"""


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of JSON files (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file to write (%(default)s)")
    return parser.parse_args(arguments)


def read(directory: Path, kind: str) -> list[dict[str, Any]]:
    """The results in all files `KIND*.json` of a directory, in the order of their names."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(directory.glob(f"{kind}*.json"))]


def page(directory: Path) -> str:
    """The whole page for a directory of results."""
    parts = [INTRODUCTION]
    for title, kind, section in (
        ("Ours", "speed", speed_section),
        ("Beside PyTorch", "compare", compare_section),
        ("How the cost grows", "scaling", scaling_section),
    ):
        found = read(directory, kind)
        for device in ("CPU", "GPU"):
            on_device = [results for results in found if bool(results["ceiling"]["gpus"]) == (device == "GPU")]
            parts.append(f"## {title}, {device}\n")
            parts += every(section, on_device)
    parts += ["## Training in bfloat16\n", *every(precision_section, read(directory, "precision"))]
    return "\n".join(parts)


def every(section: Callable[[dict[str, Any]], Iterator[str]], found: Sequence[dict[str, Any]]) -> list[str]:
    """One section per result, or the word that there is none."""
    return ["\n".join(section(results)) + "\n" for results in found] or [NOT_MEASURED + "\n"]


def by_hand(results: dict[str, Any]) -> str:
    """What a measurement does not know of itself, after a space."""
    return f" {results['note']}" if "note" in results else ""


def where(results: dict[str, Any]) -> str:
    """The machine and what was measured on it, as one sentence."""
    ceiling = results["ceiling"]
    device = ", ".join(ceiling["gpus"]) if ceiling["gpus"] else f"{ceiling['cpu']}, {ceiling['cores']} cores"
    settings = "".join(f", `{override}`" for override in results["overrides"])
    allocator = f", allocator {results['allocator']}" if "allocator" in results else ""
    version = f"TensorFlow {ceiling['tensorflow']}"
    by = f" (programs of {version}, compiled by JAX {ceiling['jax']})" if "jax" in ceiling else f"; {version}"
    return f"{device}{by}; `{results['config']}`{settings}{allocator}.{by_hand(results)}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; rows that are too short get empty cells."""
    yield "| " + " | ".join(header) + " |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join([*row, *[""] * (len(header) - len(row))]) + " |"


def speed_section(results: dict[str, Any]) -> Iterator[str]:
    """One run of `benchmarks.speed`."""
    ceiling = results["ceiling"]
    yield where(results)
    yield (
        f"Ceiling, {ceiling['dtype']}: convolution {ceiling['convolution'] / 1e9:,.0f} GFLOP/s, matrix product "
        f"{ceiling['matmul'] / 1e9:,.0f} GFLOP/s"
        + (f", copy {ceiling['bandwidth'] / 1e9:,.0f} GB/s.\n" if "bandwidth" in ceiling else ".\n")
    )
    rows = [speed.cells(result, ceiling) for result in results["results"]]
    header = [*speed.COLUMNS]
    if "bandwidth" in ceiling:
        header.append("of memory")
        for row, result in zip(rows, results["results"]):
            moved = result["bytes"]
            row.append(f"{moved / result['median_s'] / ceiling['bandwidth']:.0%}" if moved else "")
    yield from table(header, rows)
    for result in results["results"]:
        if "times_in_process" in result:
            yield (
                f"\n`{result['case']}` at batch {result['batch']} takes {result['times_in_process']:.2f} times as long "
                "as the same function in the process, measured in turns."
            )
        if "psnr_to_float32" in result:
            yield (
                f"\nPictures of `{result['case']}` at batch {result['batch']} are within "
                f"{result['psnr_to_float32']:.1f} dB (PSNR) of those that the same weights give in float32."
            )
        if "phases" in result:
            phases = ", ".join(
                f"{name} {speed.duration(phase['median_s'])} ({speed.giga(phase['flops'])} GFLOP, {phase['share']:.1%})"
                for name, phase in result["phases"].items()
            )
            yield f"\nSteps of `{result['case']}` at batch {result['batch']} by the terms due: {phases}."


def compare_section(results: dict[str, Any]) -> Iterator[str]:
    """One run of `benchmarks.compare`: medians, and how many times as long as ours the others take."""
    yield where(results)
    worst = max(results["agreement"].values())
    whose = " with those of the CPU" if results["ceiling"]["gpus"] else ""
    text = f"Outputs agree{whose} to {worst:.0e} (norm of the difference over norm)."
    if any(result["case"] in TRAINING for result in results["results"]):
        without = ", ".join(f"`{name.partition('=')[0]}`" for name in FAIR)
        text += f" Training without {without}, which the other side has not."
    yield text + "\n"
    sides = list(dict.fromkeys(side for result in results["results"] for side in result["sides"]))
    header = ["case", "batch", *(f"{side}{what}" for side in sides for what in ("", " memory"))]
    yield from table(header, [list(compare_row(result, sides)) for result in results["results"]])


def compare_row(result: dict[str, Any], sides: Sequence[str]) -> Iterator[str]:
    yield result["case"]
    yield str(result["batch"])
    ours = result["sides"]["ours"]
    for side in sides:
        measured = result["sides"].get(side)
        if measured is None or "error" in measured:
            yield "failed" if measured else ""
            yield ""
            continue
        ratio = f" ({measured['median_s'] / ours['median_s']:.2f} x)" if side != "ours" and "error" not in ours else ""
        yield speed.duration(measured["median_s"]) + ratio
        yield f"{measured['peak_bytes'] / GIB:.1f} GiB"


def scaling_section(results: dict[str, Any]) -> Iterator[str]:
    """One run of `benchmarks.scaling`: a plot and a table of the time per call for each sweep."""
    yield where(results)
    for sweep, points in results["sweeps"].items():
        cases = list(dict.fromkeys(point["case"] for point in points))
        places = sorted({point["axis"] for point in points})
        times = {
            (point["case"], point["axis"]): "failed" if "error" in point else speed.duration(point["median_s"])
            for point in points
        }
        yield f"\n![Time per call against {sweep}]({PICTURES}/{picture(results, sweep)})\n"
        rows = [[case, *(times.get((case, place), "") for place in places)] for case in cases]
        yield from table([sweep, *map(str, places)], rows)


def picture(results: dict[str, Any], sweep: str) -> str:
    """File name of a sweep's plot."""
    return f"speed_{'gpu' if results['ceiling']['gpus'] else 'cpu'}_{sweep}.svg"


def precision_section(results: dict[str, Any]) -> Iterator[str]:
    """One run of `benchmarks.precision`: a plot of the curves, and what they come to."""
    count = {precision: sum(run["precision"] == precision for run in results["runs"]) for precision in PRECISIONS}
    yield (
        f"The same training in `float32`, {count['float32']} seeds, and in `mixed_bfloat16`, "
        f"{count['mixed_bfloat16']}: `{results['config']}`, "
        f"{', '.join(f'`{override}`' for override in results['overrides'])} "
        f"(commit {results['commit']}; {results['machine']}). Adversaries, code consistency and content alignment "
        f"start at {results['start_kimg']:g} kimg.{by_hand(results)}\n"
    )
    yield f"![Loss curves in both precisions]({PICTURES}/{CURVES})\n"
    yield (
        "Means of the last third of each curve, and measures of held-out pairs at the end. *Distance* is that of the "
        "two means, in standard deviations of the seeds in `float32`.\n"
    )
    rows = []
    for term in [*terms_of(results), *results["runs"][0]["measures"]]:
        single, half = (
            [level(run, term) for run in results["runs"] if run["precision"] == precision] for precision in PRECISIONS
        )
        distance = abs(statistics.mean(half) - statistics.mean(single)) / statistics.stdev(single)
        rows.append(
            [f"`{term}`", *(f"{min(some):.4g} to {max(some):.4g}" for some in (single, half)), f"{distance:.1f}"]
        )
    yield from table(["term", "float32", "bfloat16", "distance"], rows)


def terms_of(results: dict[str, Any]) -> list[str]:
    """Every loss term of all trainings, in the order of their names."""
    curves = [run["curve"] for run in results["runs"]]
    return [term for term in curves[0] if term != "kimg" and all(term in curve for curve in curves)]


def points(curve: dict[str, Any], term: str) -> list[tuple[float, float]]:
    """(kimg, value) wherever a term was computed."""
    return [(kimg, value) for kimg, value in zip(curve["kimg"], curve[term]) if value is not None]


def level(run: dict[str, Any], term: str) -> float:
    """The mean of a term over the last third of a curve, or what was measured at the end."""
    if term in run["measures"]:
        return run["measures"][term]
    end = run["curve"]["kimg"][-1]
    return statistics.mean(value for kimg, value in points(run["curve"], term) if kimg > end * 2 / 3)


def plot_precision(results: dict[str, Any], directory: Path) -> None:
    """Every term's curve, float32 grey and bfloat16 red; the same bytes for the same results."""
    pyplot = drawing()
    directory.mkdir(parents=True, exist_ok=True)
    terms = terms_of(results)
    figure, places = pyplot.subplots(-(-len(terms) // 4), 4, figsize=(12, 2.2 * -(-len(terms) // 4)), squeeze=False)
    for axes in places.flat[len(terms) :]:
        axes.axis("off")
    for axes, term in zip(places.flat, terms):
        for run in results["runs"]:
            single = run["precision"] == PRECISIONS[0]
            axes.plot(
                *zip(*points(run["curve"], term)),
                color="0.6" if single else "tab:red",
                linewidth=1.0,
                label=run["precision"],
            )
        axes.set_title(term, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    handles, labels = places.flat[0].get_legend_handles_labels()
    named = dict(zip(labels, handles))
    figure.legend(named.values(), named.keys(), loc="lower right")
    figure.supxlabel("kimg", fontsize=9)
    figure.tight_layout()
    save(figure, directory / CURVES)


def drawing() -> Any:
    """Matplotlib's pyplot, set to draw the same bytes for the same figures; ends with `save`."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tcp_tf"
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, file: Path) -> None:
    """Writes a figure of `drawing` and forgets it."""
    figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")
    drawing().close(figure)


def plot(results: dict[str, Any], directory: Path) -> list[Path]:
    """One picture per sweep, time per call against the axis, both logarithmic; the same bytes for the same results."""
    pyplot = drawing()
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for sweep, points in results["sweeps"].items():
        figure, axes = pyplot.subplots(figsize=(6, 4))
        for case in dict.fromkeys(point["case"] for point in points):
            line = [(p["axis"], p["median_s"]) for p in points if p["case"] == case and "error" not in p]
            axes.plot(*zip(*line), marker="o", label=case) if line else None
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        places = sorted({point["axis"] for point in points})
        axes.set_xticks(places, [str(place) for place in places])
        axes.set_xlabel({"resolution": "side in px"}.get(sweep, sweep))
        axes.set_ylabel("seconds per call")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the curves, not over them
        written.append(directory / picture(results, sweep))
        save(figure, written[-1])
    return written


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Writes the page. Returns the exit code: 0, or 2 where plots are due and matplotlib is not there."""
    options = parse(arguments)
    try:
        for results in read(options.results, "scaling"):
            plot(results, options.page.parent / PICTURES)
        for results in read(options.results, "precision"):
            plot_precision(results, options.page.parent / PICTURES)
    except ImportError as error:
        print(f"benchmarks.report: {error}; the plots need the extra `bench`", file=sys.stderr)
        return 2
    options.page.write_text(page(options.results), encoding="utf-8")
    print(f"wrote {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
