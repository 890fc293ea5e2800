"""All measures of a model's answers, as {"ANSWER/MEASURE": {"mean", "standard_error", "count", ...}}.

Answers are the model's `reconstruction`, `swap` and `edit` (the region edit). Beside them stand answers that cost
nothing, `content_image`, `style_image` and `colour_transfer` for a swap and `pasted` (the swap's pixels inside the
mask, the picture's own outside) for an edit, and on drawn scenes the true answers `true_swap` and `true_edit`, which
show how good a measure can get.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcp_tf import distances, inception, metrics, scene_truth
from tcp_tf.answers import Answers, trivial_swaps
from tcp_tf.metrics import Summary
from tcp_tf.pairs import Pairs, Truth, styles_of

BLOCK = 16  # pictures whose local features are in memory at a time

Measures = dict[str, Summary]


def in_blocks(measure: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """Applies a measure [N, ...] -> [N] to a few pictures at a time, to save memory."""
    starts = range(0, len(arrays[0]), BLOCK)
    return np.concatenate([measure(*(array[start : start + BLOCK] for array in arrays)) for start in starts])


def all_measures(answers: Answers, pairs: Pairs) -> Measures:
    """Everything but FID and KID."""
    measures = {
        **reconstruction_measures(answers, pairs),
        **swap_measures(answers, pairs),
        **code_measures(answers),
        **edit_measures(answers, pairs),
    }
    return measures if pairs.truth is None else {**measures, **truth_measures(answers, pairs, pairs.truth)}


def reconstruction_measures(answers: Answers, pairs: Pairs) -> Measures:
    """How well pictures survive encoding and decoding."""
    return {
        "reconstruction/psnr": metrics.summarize_psnr(metrics.mse(answers.reconstruction, pairs.images)),
        "reconstruction/ssim": metrics.summarize(in_blocks(metrics.ssim, answers.reconstruction, pairs.images)),
        "reconstruction/l1": metrics.summarize(metrics.l1(answers.reconstruction, pairs.images)),
    }


def swap_measures(answers: Answers, pairs: Pairs) -> Measures:
    """Structure kept from the content picture and style taken from the style picture, by what needs no truth."""
    measures = {}
    for name, swap in {"swap": answers.swap, **trivial_swaps(pairs)}.items():
        structure = in_blocks(distances.self_similarity_distance, swap, pairs.images)
        style = in_blocks(distances.single_image_frechet_distance, swap, pairs.style_images)
        measures[f"{name}/self_similarity_distance"] = metrics.summarize(structure)
        measures[f"{name}/single_image_frechet_distance"] = metrics.summarize(style)
    return measures


def code_measures(answers: Answers) -> Measures:
    """Code consistency, measured again: L1 of the swap's codes to those that it was made of, as in the loss.

    `relative` divides by the L1 between the pair's own codes: codes that were all alike would be consistent too.
    """
    style_of_style, content_of_style = styles_of(answers.style), styles_of(answers.content)
    gaps = {
        "content": (code_l1(answers.swap_content, answers.content), code_l1(content_of_style, answers.content)),
        "style": (code_l1(answers.swap_style, style_of_style), code_l1(answers.style, style_of_style)),
    }
    measures = {}
    for name, (gap, between) in gaps.items():
        measures[f"swap/code_consistency/{name}"] = metrics.summarize(gap)
        if between.any():
            measures[f"swap/code_consistency/{name}_relative"] = metrics.summarize_ratio(gap, between)
    return measures


def code_l1(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of codes [N, ...]: [N]."""
    return np.abs(a - b).reshape(len(a), -1).mean(1)


def edit_measures(answers: Answers, pairs: Pairs) -> Measures:
    """Region edits: what happens outside the mask, inside it, and at its edge.

    The background's PSNR to the input is bounded by the reconstruction's over the same pixels, which is given beside
    it; the one to the reconstruction is what the edit itself does to the background.
    """
    inside, outside = pairs.masks, 1.0 - pairs.masks
    pasted = answers.swap * inside + pairs.images * outside
    seams = {name: metrics.seam_energy(pictures, pairs.masks) for name, pictures in
             {"edit": answers.edit, "pasted": pasted, "input": pairs.images}.items()}  # fmt: skip
    measures = {
        "edit/background/psnr_to_input": metrics.mse(answers.edit, pairs.images, outside),
        "edit/background/psnr_to_reconstruction": metrics.mse(answers.edit, answers.reconstruction, outside),
        "reconstruction/background/psnr_to_input": metrics.mse(answers.reconstruction, pairs.images, outside),
        "edit/inside/psnr_to_swap": metrics.mse(answers.edit, answers.swap, inside),
    }
    measures = {name: metrics.summarize_psnr(errors) for name, errors in measures.items()}
    measures["edit/background/l1_to_input"] = metrics.summarize(metrics.l1(answers.edit, pairs.images, outside))
    measures["edit/inside/l1_to_swap"] = metrics.summarize(metrics.l1(answers.edit, answers.swap, inside))
    measures.update({f"{name}/seam": metrics.summarize(seam) for name, seam in seams.items()})
    if pairs.truth is not None:
        seams["true_edit"] = metrics.seam_energy(pairs.truth.edits, pairs.masks)
        measures["true_edit/seam"] = metrics.summarize(seams["true_edit"])
        for name in ("edit", "pasted"):
            measures[f"{name}/seam_to_truth"] = metrics.summarize_ratio(seams[name], seams["true_edit"])
    if seams["pasted"].any():
        measures["edit/seam_to_pasted"] = metrics.summarize_ratio(seams["edit"], seams["pasted"])
    return measures


def swap_psnr(swaps: dict[str, np.ndarray], truth: Truth) -> Measures:
    """PSNR of each answer to the true swap over the pixels whose kind of region both pictures show."""
    errors = {name: metrics.mse(swap, truth.swaps, truth.shared) for name, swap in swaps.items()}
    return {f"{name}/psnr": metrics.summarize_psnr(each) for name, each in errors.items()}


def truth_measures(answers: Answers, pairs: Pairs, truth: Truth) -> Measures:
    """Swaps and region edits of drawn scenes against the true ones.

    What is inside a mask, and the swap, count only where the kind of region is one that both pictures show.
    """
    swaps = {"swap": answers.swap, **trivial_swaps(pairs)}
    measures = swap_psnr(swaps, truth)
    for name, swap in swaps.items():
        measures[f"{name}/ssim"] = metrics.summarize(in_blocks(metrics.ssim, swap, truth.swaps, truth.shared))
    measures.update(layout_and_look_measures({**swaps, "true_swap": truth.swaps}, truth))

    pasted = answers.swap * pairs.masks + pairs.images * (1.0 - pairs.masks)
    regions = {"inside": pairs.masks[..., 0] * truth.shared, "outside": 1.0 - pairs.masks[..., 0]}
    for name, edit in {"edit": answers.edit, "pasted": pasted, "input": pairs.images}.items():
        for place, region in regions.items():
            rows = np.flatnonzero(region.any((1, 2)))
            if rows.size and not (place == "outside" and name != "edit"):  # there those are the truth itself
                chosen = edit[rows], truth.edits[rows], region[rows]
                measures[f"{name}/{place}/psnr_to_truth"] = metrics.summarize_psnr(metrics.mse(*chosen))
                measures[f"{name}/{place}/l1_to_truth"] = metrics.summarize(metrics.l1(*chosen))
    return measures


def layout_and_look_measures(swaps: dict[str, np.ndarray], truth: Truth) -> Measures:
    """`scene_truth.judge` of every pair, averaged. Pairs of equal layouts have no drift."""
    judgements = [
        scene_truth.judge(
            {name: swap[i] for name, swap in swaps.items()},
            truth.swaps[i],
            truth.kinds[i],
            truth.style_kinds[i],
            truth.kind_pictures(i),
        )
        for i in range(len(truth.swaps))
    ]
    measures = {}
    for name in swaps:
        for measure in judgements[0][name]:
            values = np.array([judgement[name][measure] for judgement in judgements])
            if not np.isnan(values).all():
                measures[f"{name}/{measure}"] = metrics.summarize(values[~np.isnan(values)])
    return measures


def set_measures(answers: Answers, pairs: Pairs, network: Any) -> Measures:
    """FID and KID, by the features of `inception`, of reconstructions and swaps to the real pictures.

    The swaps' content pictures are the same real pictures. The Frechet distance has no standard error, and falls with
    the number of pictures: compare it at equal numbers only.
    """
    real = inception.features(network, pairs.images)
    measures = {}
    for name, pictures in {"reconstruction": answers.reconstruction, "swap": answers.swap}.items():
        found = inception.features(network, pictures)
        distance = distances.frechet_distance_of_samples(found, real)
        measures[f"{name}/fid"] = {"mean": distance, "standard_error": None, "count": len(found)}
        measures[f"{name}/kid"] = distances.kernel_distance(found, real)
    return measures
