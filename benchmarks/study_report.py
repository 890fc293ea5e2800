"""docs/results.md from the study's records: no figure in it is typed by hand.

    python -m benchmarks.study_report

reads every JSON file that `benchmarks.study` wrote into `benchmarks/results/study/` and its neighbours `own_colours/`
and `photographs/`, and writes the page and, with matplotlib (extra `bench`), its plots into `docs/pictures/`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from benchmarks.children import ROOT
from benchmarks.report import PICTURES, drawing, save, table
from benchmarks.study import MAIN_PAIR, OWN_COLOURS, PHOTOGRAPHS, RECORDS

PAGE = ROOT / "docs" / "results.md"
TITLES = {
    "sa": "Swapping Autoencoder",
    "cc": "+ code consistency",
    "ca": "+ content alignment",
    "tcp": "TCP (both)",
}
# (measure, heading, digits, whether higher is better)
COLUMNS = (
    ("reconstruction/psnr", "reconstruction, dB", 2, True),
    ("swap/psnr", "swap, dB", 2, True),
    ("swap/layout_error", "layout error", 3, False),
    ("swap/look_error", "look error", 3, False),
    ("swap/drift", "drift", 3, False),
    ("edit/background/l1_to_input", "background L1", 4, False),
    ("edit/background/psnr_to_reconstruction", "background to reconstruction, dB", 2, True),
    ("edit/inside/psnr_to_truth", "inside the mask, dB", 2, True),
    ("edit/seam_to_truth", "seam / true seam", 2, False),
    ("swap/code_consistency/content_relative", "content code moved", 3, False),
    ("swap/code_consistency/style_relative", "style code moved", 3, False),
)
CLAIMS = ("swap/layout_error", "swap/look_error", "swap/psnr", "edit/background/l1_to_input",
          "edit/background/psnr_to_reconstruction", "edit/seam_to_truth")  # fmt: skip
WITHOUT_TRUTH = (
    ("reconstruction/psnr", "reconstruction, dB", 2, True),
    ("swap/self_similarity_distance", "structure moved", 4, False),
    ("swap/single_image_frechet_distance", "style distance", 3, False),
    ("edit/background/l1_to_input", "background L1", 4, False),
    ("edit/background/psnr_to_reconstruction", "background to reconstruction, dB", 2, True),
    ("edit/inside/psnr_to_swap", "inside to swap, dB", 2, True),
    ("edit/seam_to_pasted", "seam / pasted seam", 2, False),
    ("swap/code_consistency/content_relative", "content code moved", 3, False),
    ("swap/code_consistency/style_relative", "style code moved", 3, False),
)
BARS = "study_bars.svg"
CURVES = (("swap/layout_error", "layout error"), ("swap/psnr", "swap PSNR, dB"))

INTRODUCTION = """\
# Results: TCP against the Swapping Autoencoder

Written by `python -m benchmarks.study_report` from the records in `benchmarks/results/study/`; every figure is from a
training of ours that `python -m benchmarks.study` ran. All trainings are `configs/quickstart.yaml`, with adversaries
from 8 kimg on and TCP's two losses in every fourth step, on drawn scenes of 64 px, where the true swap and the true
region edit are known; they differ in the weights of TCP's losses, in where content alignment blends, and in the seed.
The networks, the pictures and their order, and everything else in the objective are the same: *Swapping Autoencoder*
here means this recipe with its losses alone, not the published models.

Measures are means over 256 pairs of the test split with the averaged weights (`tcp_tf/measures.py` says what each is).
"""


GALLERY = """\
![Pairs of scenes and what both trainings make of them](pictures/study_gallery.png)

*From the pair that TCP swaps best to the one that it swaps worst, at even distances (`benchmarks.gallery`, seed 0).
Columns: picture, style picture, true swap; reconstruction and swap of the Swapping Autoencoder, then of TCP; region,
true edit, and both edits.*
"""


class Aside(NamedTuple):
    """A section on trainings that changed the recipe or the pictures for all objectives."""

    records: Path
    title: str
    text: str
    columns: Sequence[tuple[str, str, int, bool]]


ASIDES = (
    Aside(
        OWN_COLOURS,
        "Without recolouring",
        "The same recipe, but contents are those of the pictures themselves (`augment.content_colours=0`).",
        COLUMNS,
    ),
    Aside(
        PHOTOGRAPHS,
        "Photographs",
        "The same recipe on overlapping crops of photographs that scikit-image bundles (`benchmarks.photographs`), "
        "judged by what needs no truth; crops of one photograph are on both sides of the split.\n\n"
        "In pictures there is nothing to choose between the two: both are soft fields of the right colours. A rocket "
        "before the sky is reconstructed as sky, a face as a light patch with a brown one for the hair, gravel as grey "
        "clouds; swaps take the other picture's colours and keep a hint of the shapes; edits change inside the mask "
        "and stop at its edge. Nobody would take them for photographs after so short a training.\n\n"
        "![Pairs of crops and what both trainings make of them](pictures/photographs_gallery.png)\n\n"
        "*Columns: picture, style picture; reconstruction and swap of the Swapping Autoencoder, then of TCP; region, "
        "and both edits (`benchmarks.gallery`).*",
        WITHOUT_TRUTH,
    ),
)


class Value(NamedTuple):
    """The mean of a measure over seeds, and its standard error: over seeds, or over pairs where there is one seed."""

    mean: float
    error: float
    seeds: int


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--records", type=Path, default=RECORDS, help="directory of JSON files (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file to write (%(default)s)")
    return parser.parse_args(arguments)


def read(directory: Path) -> list[dict[str, Any]]:
    """All records, in the order of their names."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(directory.glob("*.json"))]


def rows(records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Measures of every seed, by (objective, blending strategy)."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for objective in TITLES:
        for record in records:
            if record["name"].partition("/")[0] == objective:
                for strategy, report in record["reports"].items():
                    found.setdefault((objective, strategy), []).append(report["measures"])
    return found


def value(seeds: Sequence[dict[str, Any]], measure: str) -> Value:
    """One cell of the table."""
    means = [found[measure]["mean"] for found in seeds]
    if len(means) == 1:
        return Value(means[0], seeds[0][measure]["standard_error"], 1)
    return Value(float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(len(means))), len(means))


def cell(found: Value, digits: int) -> str:
    return f"{found.mean:.{digits}f} ± {found.error:.{digits}f}"


def main_rows(records: Sequence[dict[str, Any]]) -> Optional[tuple[list, list]]:
    """Measures of every seed of the main pair, baseline first, with the same blending; None before both are there."""
    found = rows(records)
    strategy = MAIN_PAIR[1].partition("/")[2]
    pair = found.get((MAIN_PAIR[0], strategy)), found.get((MAIN_PAIR[1].partition("/")[0], strategy))
    return (pair[0], pair[1]) if pair[0] and pair[1] else None


def page(records: Sequence[dict[str, Any]], asides: Sequence[Aside] = ASIDES) -> str:
    """The whole page; an aside without records is left out."""
    parts = [INTRODUCTION, "\n".join(provenance(records))]
    parts += ["## The main pair\n", "\n".join(main_section(records))]
    parts += ["## All trainings\n", "\n".join(all_section(records))]
    parts += ["## In pictures\n", GALLERY]
    parts += ["## Over training time\n", "\n".join(curve_section(records))]
    for aside in asides:
        if found := read(aside.records):
            parts += [f"## {aside.title}\n", "\n".join(aside_section(aside, found))]
    return "\n".join(part + "\n" for part in parts)


def provenance(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the trainings cost and where they ran."""
    header = ["training", "seed", "kimg", "hours", "commit", "machine"]
    yield from table(
        header,
        [
            [f"`{r['name']}`", str(r["seed"]), f"{r['kimg']:g}", f"{r['hours']:.2f}", r["commit"], r["machine"]]
            for r in records
        ],
    )


def main_section(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """TCP beside the Swapping Autoencoder with the same blending: means over seeds and how far apart they are."""
    pair = main_rows(records)
    if pair is None:
        yield "Not yet trained."
        return
    baseline, tcp = pair
    strategy = MAIN_PAIR[1].partition("/")[2]
    yield (
        f"{len(baseline)} and {len(tcp)} seeds, both blended by `{strategy}`. *Apart* is the difference of the means "
        f"in its own standard errors over seeds, positive where TCP is better.\n"
    )
    lines = []
    for measure, heading, digits, higher in COLUMNS:
        if measure not in CLAIMS:
            continue
        before, after = value(baseline, measure), value(tcp, measure)
        gain = (after.mean - before.mean) * (1 if higher else -1)
        change = f"{after.mean - before.mean:+.2f} dB" if "psnr" in measure else f"{after.mean / before.mean - 1:+.1%}"
        error = math.hypot(before.error, after.error)
        apart = f"{gain / error:+.1f}" if error and min(before.seeds, after.seeds) > 1 else "one seed"
        lines.append([heading, cell(before, digits), cell(after, digits), change, apart])
    yield from table(["measure", TITLES["sa"], TITLES["tcp"], "change", "apart"], lines)
    first = baseline[0]
    trivial = [(name, first[f"{name}/psnr"]["mean"]) for name in ("content_image", "style_image", "colour_transfer")]
    yield (
        "\nFor scale: against the true swap "
        + ", ".join(f"the {name.replace('_', ' ')} gives {mean:.2f} dB" for name, mean in trivial)
        + f"; of the true swap itself the layout error reads {first['true_swap/layout_error']['mean']:.3f}; pasting "
        f"the swap's pixels gives {value(tcp, 'pasted/seam_to_truth').mean:.2f} times the true picture's seam "
        f"({TITLES['tcp']}) and {value(baseline, 'pasted/seam_to_truth').mean:.2f} times ({TITLES['sa']})."
    )


def all_section(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Every objective with every blending strategy."""
    yield f"![The main measures of all trainings]({PICTURES}/{BARS})\n"
    yield "Standard errors are over seeds where there are several, else over the pairs of the one training.\n"
    yield from measures_table(records, COLUMNS)


def measures_table(records: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str, int, bool]]) -> Iterator[str]:
    """A row for every objective with every blending strategy."""
    header = ["objective", "blending", "seeds", *(f"{heading} {'↑' if up else '↓'}" for _, heading, _, up in columns)]
    lines = []
    for (objective, strategy), seeds in rows(records).items():
        cells = [cell(value(seeds, measure), digits) for measure, _, digits, _ in columns]
        lines.append([TITLES[objective], f"`{strategy}`", str(len(seeds)), *cells])
    yield from table(header, lines)


def aside_section(aside: Aside, records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What was changed, what the trainings cost, and their measures."""
    yield f"{aside.text}\n"
    yield "Standard errors are over pairs.\n"
    yield from provenance(records)
    yield ""
    yield from measures_table(records, aside.columns)


def curve_section(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Measures of the swap on the validation split while training went on."""
    for measure, heading in CURVES:
        yield f"![{heading} over training time]({PICTURES}/{picture(measure)})\n"
        points = sorted({point["kimg"] for record in records for point in record["curve"]})
        lines = []
        for record in records:
            known = {point["kimg"]: point["measures"][measure]["mean"] for point in record["curve"]}
            cells = [f"{known[kimg]:.3f}" if kimg in known else "" for kimg in points]
            lines.append([f"`{record['name']}`, seed {record['seed']}", *cells])
        yield from table([f"{heading} at kimg", *(f"{kimg:g}" for kimg in points)], lines)
        yield ""


def picture(measure: str) -> str:
    """File name of a curve's plot."""
    return f"study_{measure.replace('/', '_')}.svg"


def plot(records: Sequence[dict[str, Any]], directory: Path) -> None:
    """One picture per curve, and bars of the main measures; the same bytes for the same records."""
    pyplot = drawing()
    directory.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(record["name"] for record in records))
    for measure, heading in CURVES:
        figure, axes = pyplot.subplots(figsize=(7, 4))
        for record in records:
            line = [(point["kimg"], point["measures"][measure]["mean"]) for point in record["curve"]]
            first = record["seed"] == min(r["seed"] for r in records if r["name"] == record["name"])
            colour = f"C{names.index(record['name'])}"
            axes.plot(*zip(*line), marker="o", ms=3, color=colour, label=record["name"] if first else None)
        axes.set_xlabel("kimg")
        axes.set_ylabel(heading)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        save(figure, directory / picture(measure))
    found = rows(records)
    figure, all_axes = pyplot.subplots(1, len(CLAIMS), figsize=(3 * len(CLAIMS), 3.5))
    for axes, measure in zip(all_axes, CLAIMS):
        values = [value(seeds, measure) for seeds in found.values()]
        labels = [f"{objective}/{strategy}" for objective, strategy in found]
        colours = [f"C{list(TITLES).index(objective)}" for objective, _ in found]
        axes.barh(labels, [v.mean for v in values], xerr=[v.error for v in values], color=colours)
        axes.invert_yaxis()
        axes.set_title(next(heading for name, heading, _, _ in COLUMNS if name == measure), fontsize=9)
        axes.tick_params(labelsize=7)
        if axes is not all_axes[0]:
            axes.set_yticklabels([])
    save(figure, directory / BARS)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Writes the page. Returns the exit code: 0, or 2 where there are no records or matplotlib is not there."""
    options = parse(arguments)
    records = read(options.records)
    if not records:
        print(f"benchmarks.study_report: no records in {options.records}", file=sys.stderr)
        return 2
    try:
        plot(records, options.page.parent / PICTURES)
    except ImportError as error:
        print(f"benchmarks.study_report: {error}; the plots need the extra `bench`", file=sys.stderr)
        return 2
    options.page.write_text(page(records), encoding="utf-8")
    print(f"wrote {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
