"""Every measure against a value known in closed form or computed by another library."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tcp_tf import distances, metrics, scene_truth
from tcp_tf.colour_transfer import colour_transfer
from tcp_tf.datasets import scene_render


def random_pictures(seed: int, count: int = 2, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, height, width, 3))


def test_psnr_of_a_constant_offset() -> None:
    picture = random_pictures(0)
    assert metrics.psnr(picture, picture + 0.2) == pytest.approx([20.0, 20.0])  # 10 log10(2^2 / 0.2^2)
    assert metrics.psnr(picture, picture + 25.5, peak=255.0) == pytest.approx([20.0, 20.0])
    assert np.isinf(metrics.psnr(picture, picture)).all()


def test_psnr_and_ssim_equal_another_librarys() -> None:
    a, b = random_pictures(0), random_pictures(1)
    b = 0.6 * a + 0.4 * b
    options = {"data_range": 2.0, "channel_axis": -1, "gaussian_weights": True, "use_sample_covariance": False}
    for i in range(2):
        assert metrics.psnr(a, b)[i] == pytest.approx(peak_signal_noise_ratio(a[i], b[i], data_range=2.0), abs=1e-9)
        assert metrics.ssim(a, b)[i] == pytest.approx(structural_similarity(a[i], b[i], **options), abs=1e-9)


def test_only_the_pixels_that_count_are_counted() -> None:
    a = random_pictures(0)
    where = np.zeros((2, 24, 32), bool)
    where[:, :, :20] = True
    b = np.where(where[..., None], a + 0.1, -a)
    assert metrics.l1(a, b, where) == pytest.approx([0.1, 0.1])
    assert metrics.mse(a, b, where[..., None]) == pytest.approx([0.01, 0.01])
    assert metrics.ssim(a, np.where(where[..., None], a, -a), where) == pytest.approx([1.0, 1.0])
    everywhere = np.ones((2, 24, 32))
    assert metrics.ssim(a, b, everywhere) == pytest.approx(metrics.ssim(a, b))
    with pytest.raises(ValueError, match="no pixel of picture 1"):
        metrics.psnr(a, b, np.stack([where[0], ~everywhere[0].astype(bool)]))
    with pytest.raises(ValueError, match="of one shape"):
        metrics.l1(a, b[:, 1:])


def test_ssim_of_equal_and_of_constant_pictures() -> None:
    a = random_pictures(0)
    assert metrics.ssim(a, a) == pytest.approx([1.0, 1.0])
    x, y, c1 = 0.3, -0.2, (0.01 * 2.0) ** 2
    expected = (2 * x * y + c1) / (x * x + y * y + c1)  # no variance: the second factor is 1
    assert metrics.ssim(np.full_like(a, x), np.full_like(a, y)) == pytest.approx([expected] * 2)


def test_seam_energy_of_a_step() -> None:
    masks = np.zeros((1, 8, 8, 1))
    masks[:, :, 4:] = 1.0
    picture = np.broadcast_to(np.where(np.arange(8) >= 4, 0.5, -0.25)[None, None, :, None], (1, 8, 8, 3))
    assert metrics.seam_energy(picture, masks) == pytest.approx([0.75])
    assert metrics.seam_energy(picture.transpose(0, 2, 1, 3), masks) == pytest.approx([0.0])
    with pytest.raises(ValueError, match="mask 0 has no edge"):
        metrics.seam_energy(picture, np.ones_like(masks))


def test_summaries() -> None:
    summary = metrics.summarize(np.array([1.0, 2.0, 6.0]))
    assert summary == {"mean": 3.0, "standard_error": pytest.approx(np.sqrt(7.0 / 3.0)), "count": 3}
    two = metrics.summarize_psnr(np.array([0.04, 0.0004]))
    assert two["mean"] == pytest.approx(30.0)
    assert two["pooled"] == pytest.approx(10 * np.log10(4 / 0.0202))
    assert metrics.summarize_psnr(np.zeros(3))["mean"] == pytest.approx(20 * np.log10(255 / 0.5))
    with pytest.raises(ValueError, match="nan, value of picture 1"):
        metrics.summarize(np.array([0.0, np.nan]))
    assert metrics.summarize_ratio(np.array([1.0, 4.0]), np.array([2.0, 8.0])) == {
        "mean": 0.5, "standard_error": 0.0, "count": 2,
    }  # fmt: skip


def test_standard_error_of_a_ratio_is_that_of_many_repetitions() -> None:
    rng = np.random.default_rng(0)
    below = rng.gamma(20.0, 1.0, (4000, 50))
    above = 0.7 * below + rng.normal(0.0, 1.0, below.shape)
    summaries = [metrics.summarize_ratio(*sample) for sample in zip(above, below)]
    spread = np.std([summary["mean"] for summary in summaries])
    assert np.mean([summary["standard_error"] for summary in summaries]) == pytest.approx(spread, rel=0.05)


def test_colour_transfer_gives_the_styles_mean_and_covariance() -> None:
    content, style = random_pictures(0), random_pictures(1) @ np.array([[0.5, 0.2, 0], [0, 0.3, 0.1], [0, 0, 0.2]])
    result = colour_transfer(content, style[:, :16])
    for i in range(2):
        pixels, wanted = result[i].reshape(-1, 3), style[i, :16].reshape(-1, 3)
        np.testing.assert_allclose(pixels.mean(0), wanted.mean(0), atol=1e-9)
        np.testing.assert_allclose(np.cov(pixels.T, bias=True), np.cov(wanted.T, bias=True), atol=1e-9)
    np.testing.assert_allclose(colour_transfer(content, content), content, atol=1e-9)


def test_colour_transfer_of_a_picture_without_colours() -> None:
    style = random_pictures(1)
    flat = colour_transfer(np.full_like(style, 0.3), style)
    np.testing.assert_allclose(flat, np.broadcast_to(style.mean((1, 2), keepdims=True), flat.shape), atol=1e-9)
    grey = np.repeat(random_pictures(0)[..., :1], 3, axis=-1)
    assert np.isfinite(colour_transfer(grey, style)).all()
    assert np.abs(colour_transfer(grey, style)).max() < 5


def test_frechet_distance_of_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 5))
    deviation_a, deviation_b = rng.uniform(0.1, 2.0, (2, 5))
    expected = ((mean_a - mean_b) ** 2).sum() + ((deviation_a - deviation_b) ** 2).sum()  # diagonal: closed form
    found = distances.frechet_distance(mean_a, np.diag(deviation_a**2), mean_b, np.diag(deviation_b**2))
    assert found == pytest.approx(expected)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]  # a common rotation changes nothing
    turned = [turn @ np.diag(deviation**2) @ turn.T for deviation in (deviation_a, deviation_b)]
    assert distances.frechet_distance(turn @ mean_a, turned[0], turn @ mean_b, turned[1]) == pytest.approx(expected)


def test_frechet_distance_equals_the_textbook_formula_on_samples() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 6)), rng.normal(size=(30, 6)) @ rng.normal(size=(6, 6)) + 0.5
    product = np.cov(a.T) @ np.cov(b.T)  # not symmetric; its eigenvalues are those of A^1/2 B A^1/2
    overlap = np.sqrt(np.maximum(np.linalg.eigvals(product).real, 0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * overlap
    assert distances.frechet_distance_of_samples(a, b) == pytest.approx(expected)


def test_frechet_distance_of_few_samples_takes_the_short_way_to_the_same_value() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(8, 20)), rng.normal(size=(7, 20)) + 1.0
    moments = [(each.mean(0), np.cov(each.T)) for each in (a, b)]
    assert distances.frechet_distance_of_samples(a, b) == pytest.approx(
        float(distances.frechet_distance(*moments[0], *moments[1])), rel=1e-5
    )
    assert distances.frechet_distance_of_samples(a, a) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="at least 2 samples"):
        distances.frechet_distance_of_samples(a[:1], b)


def test_kernel_distance_equals_the_sum_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(6, 4)) + 0.3

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 4 + 1) ** 3)

    def estimate(a: np.ndarray, b: np.ndarray) -> float:
        n, m = len(a), len(b)
        within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
        return within_a + within_b - 2 * sum(kernel(x, y) for x in a for y in b) / (n * m)

    found = distances.kernel_distance(a, b)
    assert found["mean"] == pytest.approx(estimate(a, b))
    without_a = [estimate(np.delete(a, i, 0), b) for i in range(5)]
    without_b = [estimate(a, np.delete(b, i, 0)) for i in range(6)]
    assert found["standard_error"] == pytest.approx(np.sqrt(4 * np.var(without_a) + 5 * np.var(without_b)))


def test_kernel_distance_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    found = [distances.kernel_distance(*rng.normal(size=(2, 20, 8)))["mean"] for _ in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0 < max(found)
    shifted = distances.kernel_distance(rng.normal(size=(50, 8)), rng.normal(size=(50, 8)) + 1.0)
    assert shifted["mean"] > 5 * shifted["standard_error"] > 0


def test_self_similarity_sees_structure_and_not_brightness_or_contrast() -> None:
    layouts = [scene_render.render(layout, 5, 64) / 127.5 - 1.0 for layout in (1, 2)]
    a, b = (layout[None] for layout in layouts)
    same = float(distances.self_similarity_distance(a, a)[0])
    duller = float(distances.self_similarity_distance(a, 0.5 * a + 0.2)[0])
    other = float(distances.self_similarity_distance(a, b)[0])
    assert same == 0.0
    assert 0.0 < duller < 0.05 < 0.3 < other < 2.0
    with pytest.raises(ValueError, match="16 px"):
        distances.self_similarity_distance(a[:, :8], a[:, :8])


def test_single_image_frechet_sees_colours_and_texture_and_not_places() -> None:
    a, other_look = (scene_render.render(1, look, 64)[None] / 127.5 - 1.0 for look in (5, 6))
    mirrored, other = (float(distances.single_image_frechet_distance(a, b)[0]) for b in (a[:, :, ::-1], other_look))
    assert 10 * mirrored < other  # the two diagonals change places, no more
    brighter = distances.single_image_frechet_distance(a, a + 0.1)
    assert brighter == pytest.approx([0.03], rel=1e-6)  # 3 * 0.1^2


def judged(layout: int, other: int, look: int, answers: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    kinds, style_kinds = (scene_render.sample_layout(seed, 64) for seed in (layout, other))
    truth = scene_render.render(layout, look) / 127.5 - 1.0
    patterns = scene_render.kind_pictures(look) / 127.5 - 1.0
    scaled = {name: answer / 127.5 - 1.0 for name, answer in answers.items()}
    return scene_truth.judge(scaled, truth, kinds, style_kinds, patterns)


def test_the_true_swap_has_no_layout_error_drift_or_look_error_and_the_style_image_has_all() -> None:
    layout, other, own_look, look = 11, 12, 21, 22
    answers = {
        "true": scene_render.render(layout, look),
        "style": scene_render.render(other, look),
        "content": scene_render.render(layout, own_look),
    }
    found = judged(layout, other, look, answers)
    assert found["true"]["layout_error"] < 0.1 and found["true"]["drift"] < 0.05  # mixed pixels at the edges
    assert found["true"]["look_error"] == 0.0
    assert found["style"]["layout_error"] > 0.3 and found["style"]["drift"] > 0.8
    assert found["content"]["look_error"] > 0.1 and found["content"]["drift"] < 0.3


def test_look_error_of_a_brighter_swap_is_the_difference_in_brightness() -> None:
    answer = scene_render.render(11, 22).astype(np.float64)
    found = judged(11, 12, 22, {"brighter": answer + 25.5})["brighter"]
    assert found["look_error/colour"] == pytest.approx(0.1)
    assert found["look_error/texture"] == pytest.approx(0.0, abs=1e-12)
    assert found["look_error"] == pytest.approx(0.1)
