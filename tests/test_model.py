"""The algorithm: who is trained by what, on which step, and that its shortcuts change nothing.

Everything here runs eagerly, where a step of the small model takes about a second and tracing one takes ten, except
for the comparison of one replica with two, which goes the way of `train.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from small import Noise, enliven, kind, label, relative_difference, small_batch, small_config

from benchmarks.flops import needed
from tcp_tf import blending, losses, ops, run_dir, target, training
from tcp_tf import config as configuration
from tcp_tf.config import Config
from tcp_tf.critics import LOT, Critics, lots
from tcp_tf.draws import NOISE_COPY, NOISE_RECONSTRUCTION, NOISE_SWAP, Draws
from tcp_tf.model import TCP

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GENERATOR_TERMS = {"g/l1", "g/gan_rec", "g/gan_swap", "g/patch_gan"}
TCP_TERMS = {"g/code_consistency/content", "g/code_consistency/style", "g/content_alignment"}
CRITIC_TERMS = {"d/gan_real", "d/gan_rec", "d/gan_swap", "dp/real", "dp/fake"}
R1_TERMS = {"d/r1", "dp/r1"}
VARIANCES = {"codes/content_variance", "codes/style_variance"}
LENGTHS = {"gradients/g", "gradients/d"}

Batch = dict[str, tf.Tensor]
Gradients = dict[str, list[tf.Tensor]]


def make(*overrides: str) -> TCP:
    """A small model whose biases and noise strengths are not zero."""
    model = TCP(small_config(*overrides))
    enliven(model.encoder, model.generator, model.discriminator, model.patch_discriminator)
    return model


def assert_equal_but_for_rounding(config: Config, difference: Callable[[Batch], float]) -> None:
    """That two computations of gradients, whose relative difference is given, agree on one of three batches.

    With some batches an activation lies so near its kink that rounding decides on its slope, in any two computations
    and on some CPUs only. A mistake shows with every batch.
    """
    differences: list[float] = []
    for seed in (3, 4, 5):
        differences.append(difference(small_batch(config, seed=seed)))
        if differences[-1] < 1e-5:
            break
    assert min(differences) < 1e-5, differences


def furthest(ours: Gradients, expected: Gradients) -> float:
    """The larger of both sides' relative differences."""
    return float(np.max([relative_difference(ours[side], expected[side]) for side in ("g", "d")]))  # NaN stays NaN


def arrays(variables: Any) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


@pytest.fixture(scope="module")
def model() -> TCP:
    return make("loss.r1_every=3", "loss.consistency_every=2", "loss.g.patch_gan=0.7", "loss.d.gan_swap=0.6")


@pytest.fixture
def first_step(model: TCP) -> Iterator[TCP]:
    model.step.assign(0)
    yield model
    model.step.assign(0)


# ---- R1


@pytest.mark.parametrize("gamma", [10.0, 0.5])
def test_r1_of_a_linear_critic_is_its_squared_norm(gamma: float) -> None:
    slope = np.random.default_rng(1).standard_normal((4, 4, 3)).astype(np.float32)
    owner: Any = SimpleNamespace(
        config=small_config(f"loss.r1_gamma={gamma}"),
        discriminator=lambda images, keep: tf.tensordot(images, slope, axes=3) + 5.0,
    )
    values = Critics._image_r1(owner, tf.random.stateless_normal([3, 4, 4, 3], [1, 2]))
    np.testing.assert_allclose(values, [gamma / 2 * np.sum(slope**2)] * 3, rtol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 10.0])
def test_patch_r1_of_a_linear_critic(gamma: float) -> None:
    """Two crops a side: the gradient of the sum of an example's logits has twice the squared norm of one crop's."""
    rng = np.random.default_rng(2)
    first, second = (rng.standard_normal((4, 4, 3)).astype(np.float32) for _ in range(2))
    owner: Any = SimpleNamespace(
        config=small_config(f"loss.patch_r1_gamma={gamma}"),
        patch_discriminator=lambda reference, query, keep: (
            tf.tensordot(reference, first, 3) + tf.tensordot(query, second, 3)
        ),
    )
    crops = tf.random.stateless_normal([3, 2, 4, 4, 3], [1, 2])
    values = Critics._patch_r1(owner, crops, -crops)
    np.testing.assert_allclose(values, [gamma / 4 * 2 * (np.sum(first**2) + np.sum(second**2))] * 3, rtol=1e-5)


# ---- who is trained by what


def test_every_variable_has_one_owner_and_a_gradient(first_step: TCP) -> None:
    model = first_step
    networks: list[Any] = [model.encoder, model.generator, model.discriminator, model.patch_discriminator]
    owned = [id(variable) for variable in model.generator_side + model.discriminator_side]
    assert len(set(owned)) == len(owned)
    assert sorted(owned) == sorted(id(variable) for network in networks for variable in network.weights)
    assert sorted(owned) == sorted(id(variable) for variable in model.trainable_variables)
    gradients, _ = model.gradients(small_batch(model.config))
    for side, variables in (("g", model.generator_side), ("d", model.discriminator_side)):
        assert len(gradients[side]) == len(variables)
        for gradient, variable in zip(gradients[side], variables):
            assert gradient.shape == variable.shape
            assert np.all(np.isfinite(gradient)) and np.any(gradient), label(variable)


@pytest.mark.parametrize("still", ["g", "d"])
def test_an_optimizer_leaves_the_other_side_alone(still: str) -> None:
    model = make()
    model.compile()
    optimizers = {"g": model.optimizer, "d": model.discriminator_optimizer}
    sides = {"g": model.generator_side, "d": model.discriminator_side}
    optimizers[still].learning_rate = 0.0
    before = {side: arrays(variables) for side, variables in sides.items()}
    model.train_step(small_batch(model.config))
    for side, variables in sides.items():
        for variable, old in zip(variables, before[side]):
            assert np.array_equal(variable, old) == (side == still), label(variable)
    assert int(model.step) == int(model.optimizer.iterations) == int(model.discriminator_optimizer.iterations) == 1


# ---- the shortcuts


def plain_terms(model: TCP, batch: Batch, r1: bool, consistency: bool) -> dict[str, tf.Tensor]:
    """Every term in the plainest way: each network called separately wherever a formula names it."""
    images, loss, size = batch["image"], model.config.loss, model.config.model.patch_size
    encode, decode, critic = model.encoder, model.generator, model.discriminator
    draws = Draws(model.config, model.step, batch["position"])
    boxes, noise = draws.boxes(3), draws.noise(model.generator, NOISE_SWAP)
    content, style = encode(images)
    other = tf.gather(style, [1, 0, 3, 2])
    if model.config.augment.content_colours:
        content = encode(ops.mix_colours(images, *draws.colour_maps())).content
    reconstruction = decode(content[::2], style[::2], draws.noise(model.generator, NOISE_RECONSTRUCTION, every=2))
    swap = decode(content, other, noise)
    reference, query = (ops.crop_and_resize(images, boxes[:, i], size) for i in (0, 1))
    swap_crops = ops.crop_and_resize(swap, boxes[:, 2], size)
    fixed = tf.stop_gradient
    real_pairs = model.patch_discriminator(reference, query)
    fake_pairs = model.patch_discriminator(tf.gather(reference, [1, 0, 3, 2]), swap_crops)
    terms = {
        "g/l1": losses.l1(reconstruction, images[::2]),
        "g/gan_rec": losses.judged_real(critic(reconstruction)),
        "g/gan_swap": losses.judged_real(critic(swap)),
        "g/patch_gan": losses.judged_real(fake_pairs),
        "d/gan_real": losses.judged_real(critic(images)),
        "d/gan_rec": losses.judged_fake(critic(fixed(reconstruction))),
        "d/gan_swap": losses.judged_fake(critic(fixed(swap))),
        "dp/real": losses.judged_real(real_pairs),
        "dp/fake": losses.judged_fake(model.patch_discriminator(tf.gather(reference, [1, 0, 3, 2]), fixed(swap_crops))),
    }
    if r1:
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(critic(images))
        penalty = tf.reduce_sum(tape.gradient(total, images) ** 2, [1, 2, 3])
        with tf.GradientTape() as tape:
            tape.watch([reference, query])
            total = tf.reduce_sum(model.patch_discriminator(reference, query))
        penalties = [tf.reduce_sum(g**2, [1, 2, 3, 4]) for g in tape.gradient(total, [reference, query])]
        terms["d/r1"] = loss.r1_gamma / 2 * penalty
        terms["dp/r1"] = loss.patch_r1_gamma / 4 * (penalties[0] + penalties[1])
    if consistency:
        again = encode(swap)
        masks = draws.masks()
        styles, weights = tf.stack([style, other], 1), tf.concat([1 - masks, masks], -1)
        hybrid = blending.blend(
            model.config.blend.strategy, encode, decode, content, styles, weights, encode.trunk(images), noise
        )
        target = fixed if loss.stop_gradient_targets else tf.identity
        terms["g/code_consistency/content"] = losses.l1(again.content, target(content))
        terms["g/code_consistency/style"] = losses.l1(again.style, target(other))
        inside = hybrid - target(swap)
        inside *= tf.cast(tf.abs(inside) >= losses.ROUNDING, tf.float32)
        terms["g/content_alignment"] = losses.l1(inside * masks, tf.zeros_like(inside)) + losses.l1(
            hybrid * (1 - masks), images * (1 - masks)
        )
    return terms


def plain_gradients(model: TCP, batch: Batch, r1: bool, consistency: bool) -> tuple[Gradients, dict]:
    """Two separate passes over everything, one for each side, each with the ordinary losses."""
    gradients, terms = {}, {}
    for side, groups, variables in (
        ("g", ("g",), model.generator_side),
        ("d", ("d", "dp"), model.discriminator_side),
    ):
        with tf.GradientTape() as tape:
            terms = plain_terms(model, batch, r1, consistency)
            total = tf.constant(0.0)
            for name, weight in model.config.loss.weights.items():
                if name in terms and name.split("/")[0] in groups:
                    often = model.config.loss.r1_every if name in R1_TERMS else 1
                    total += weight * often * tf.reduce_mean(terms[name])
        gradients[side] = tape.gradient(total, variables)
    return gradients, terms


@pytest.mark.parametrize(
    ("step", "overrides"),
    [
        (0, ()),
        (1, ("blend.strategy=encoder_features",)),  # neither R1 nor consistency
        (2, ("blend.strategy=encoder_features", "loss.r1_every=2")),
        (2, ("blend.strategy=generator_features", "loss.stop_gradient_targets=false", "loss.g.gan_rec=0")),
        (0, ("augment.content_colours=0.8",)),
    ],
)
def test_one_backward_pass_for_both_sides_is_the_same_as_two(step: int, overrides: tuple) -> None:
    model = make(
        *("loss.r1_every=4", "loss.consistency_every=2", "loss.g.patch_gan=0.7", "loss.d.gan_swap=0.6"),
        *("loss.dp.fake=1.3", "loss.g.code_consistency.content=1.5", *overrides),
    )
    model.step.assign(step)

    def difference(batch: Batch) -> float:
        gradients, terms = model.gradients(batch)
        expected, expected_terms = plain_gradients(model, batch, step % model.config.loss.r1_every == 0, step % 2 == 0)
        for name, values in expected_terms.items():
            if model.config.loss.weights[name]:
                np.testing.assert_allclose(terms[name], values, rtol=2e-5, atol=1e-6, err_msg=name)
        of_variables = []
        for side in ("g", "d"):
            largest = max(float(tf.norm(gradient)) for gradient in expected[side])
            for ours, plain in zip(gradients[side], expected[side]):
                # A variable whose gradient is far below the others' carries their rounding.
                of_variables.append(float(tf.norm(ours - plain)) / (float(tf.norm(plain)) + 0.1 * largest))
        return float(np.max([furthest(gradients, expected), *of_variables]))

    assert_equal_but_for_rounding(model.config, difference)


@pytest.mark.parametrize(
    ("in_turn", "at_once"),
    [(1, 4), *(pytest.param(*parts, marks=pytest.mark.one_stack) for parts in ((2, 2), (2, 1), (4, 1)))],
)
def test_parts_are_the_large_batch(in_turn: int, at_once: int) -> None:
    """32 pictures as one batch, and in parts one after another, side by side or both: R1 and consistency due."""
    settings = ("data.batch_size=32", "augment.content_colours=0.5")
    parts = (f"train.accumulate={in_turn}", f"train.concurrent={at_once}")
    whole, divided = make(*settings), make(*settings, *parts)
    batch = small_batch(whole.config)
    step = tf.function(divided.accumulated_gradients, autograph=False).get_concrete_function(batch)
    loops = [node for node in every_node(step.graph.as_graph_def()) if node.op.endswith("While")]
    assert bool(loops) == (in_turn > 1)
    assert {node.attr["parallel_iterations"].i for node in loops} <= {1}  # in the memory of one part
    if in_turn == 1:
        calls = [op for op in step.graph.get_operations() if op.type.endswith("PartitionedCall")]
        assert len(calls) == at_once and len({op.get_attr("f").name for op in calls}) == 1  # traced once
        assert not any(set(calls) & set(needed([*call.control_inputs, *(x.op for x in call.inputs)])) for call in calls)

    def difference(batch: Batch) -> float:
        expected, expected_terms = whole.accumulated_gradients(batch)
        gradients, terms = step(batch)
        assert set(terms) == set(expected_terms)
        for name in set(terms) - VARIANCES:
            np.testing.assert_allclose(terms[name], tf.reduce_mean(expected_terms[name]), rtol=1e-5, err_msg=name)
        return furthest(gradients, expected)

    assert_equal_but_for_rounding(whole.config, difference)


@pytest.mark.parametrize(
    ("pictures", "counts"),
    [
        (0, [12, 18, 6]),
        pytest.param(4, [3, 6, 6], marks=pytest.mark.one_stack),
        pytest.param(18, [1, 1, 3], marks=pytest.mark.one_stack),
    ],
)
def test_lots_are_judged_as_all_pictures_at_once(
    pictures: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 pictures, with R1 due: real ones and crops with other weights than generated ones."""
    model = make("data.batch_size=12", "loss.d.gan_swap=0.6", "loss.dp.fake=1.3", "loss.g.patch_gan=0.7")
    numbers = model.config.data.resolution**2 * model.discriminator.widths[0]
    with monkeypatch.context() as in_lots:
        in_lots.setitem(LOT, "float32", pictures * numbers)
        critics = model.critics
        assert [critics.picture_lots(12), critics.picture_lots(18), critics.crop_lots(12)] == counts
        step = tf.function(model.gradients, autograph=False).get_concrete_function(small_batch(model.config))
    loops = [node for node in every_node(step.graph.as_graph_def()) if node.op.endswith("While")]
    of_r1 = 1  # which takes twice the memory
    assert [node.attr["parallel_iterations"].i for node in loops] == [1] * (sum(count > 1 for count in counts) + of_r1)

    def difference(batch: Batch) -> float:
        expected, expected_terms = model.gradients(batch)
        gradients, terms = step(batch)
        for name, values in expected_terms.items():
            np.testing.assert_allclose(tf.reduce_mean(terms[name]), tf.reduce_mean(values), rtol=1e-5, err_msg=name)
        return furthest(gradients, expected)

    assert_equal_but_for_rounding(model.config, difference)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lots_are_as_few_as_memory_allows(dtype: str) -> None:
    most = LOT[dtype]
    assert [lots(examples, most // 3, dtype) for examples in (1, 3, 4, 7, 12)] == [1, 1, 2, 7, 4]
    assert [lots(6, numbers, dtype) for numbers in (1, most // 6, most // 5, most, 2 * most)] == [1, 1, 2, 6, 6]
    with target.assumed(gpu=True):
        assert lots(6, most, dtype) == 1


@pytest.mark.parametrize(
    "strategy",
    [
        "style_map",
        *(pytest.param(name, marks=pytest.mark.one_stack) for name in blending.STRATEGIES if name != "style_map"),
    ],
)
def test_recomputed_activations_change_no_gradient(strategy: str) -> None:
    """All terms, R1 and consistency due; every block's convolutions stand in the graph once more."""
    settings = ("augment.content_colours=0.5", f"blend.strategy={strategy}")
    models = [make(*settings, f"train.recompute={recompute}") for recompute in (False, True)]
    batch = small_batch(models[0].config)
    kept, again = (tf.function(model.gradients, autograph=False).get_concrete_function(batch) for model in models)
    assert_equal_but_for_rounding(models[0].config, lambda batch: furthest(again(batch)[0], kept(batch)[0]))
    convolutions = [sum(node.op == "Conv2D" for node in every_node(s.graph.as_graph_def())) for s in (kept, again)]
    assert convolutions[1] > 1.2 * convolutions[0]


def every_node(graph: Any) -> Iterator[Any]:
    """Nodes of a graph and of its functions."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def test_what_a_gpu_and_xla_are_given_is_the_same_step() -> None:
    """All terms, R1 and consistency due, by TensorFlow's kernels in both ways, which draw the same numbers."""
    model = make("augment.content_colours=0.5")

    def difference(batch: Batch) -> float:
        expected, expected_terms = model.gradients(batch)
        with target.assumed(gpu=True, xla=True):
            gradients, terms = model.gradients(batch)
        for name in terms:
            np.testing.assert_allclose(terms[name], expected_terms[name], rtol=1e-5, atol=1e-6, err_msg=name)
        return furthest(gradients, expected)

    assert_equal_but_for_rounding(model.config, difference)


def test_xla_compiles_the_gradients_of_a_step_where_asked() -> None:
    """On a step of the warm-up, which is compiled in seconds."""
    plain, compiled = make("model.noise=false"), make("model.noise=false", "train.xla=true")
    plain.warming_up = compiled.warming_up = True
    batch = small_batch(plain.config)
    step = tf.function(compiled.gradients_and_means, autograph=False).get_concrete_function(batch)
    assert [node for node in every_node(step.graph.as_graph_def()) if node.attr["_XlaMustCompile"].b]

    def difference(batch: Batch) -> float:
        (gradients, means), (expected, expected_means) = step(batch), plain.gradients_and_means(batch)
        np.testing.assert_allclose(means["g/l1"], expected_means["g/l1"], rtol=1e-5)
        return relative_difference(gradients["g"], expected["g"])

    assert_equal_but_for_rounding(plain.config, difference)


@pytest.mark.parametrize("together", [True, False])
def test_parts_of_a_step_wait_for_each_other(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that their activations are not in memory together: a critic's on real, on generated pictures, and so on.

    Only small networks work on real and generated pictures together.
    """
    model = make()
    assert model.critics.together(len(small_batch(model.config)["image"]))
    monkeypatch.setattr(model.critics, "together", lambda examples: together)
    traced: dict[str, Any] = {}
    plus_r1 = model.critics.plus_r1

    def recorded(gradients: list[tf.Tensor], *rest: tf.Tensor) -> Any:
        traced["own"] = gradients
        return plus_r1(gradients, *rest)

    def step(batch: Batch) -> None:
        traced["gradients"], traced["terms"] = model.gradients(batch)

    monkeypatch.setattr(model.critics, "plus_r1", recorded)
    tf.function(step, autograph=False).get_concrete_function(small_batch(model.config))
    names = ("g/l1", "d/gan_swap", "dp/fake", "g/code_consistency/style", "d/r1")
    before = {name: set(needed([traced["terms"][name].op])) for name in names}
    # A gradient of the generator's side is the sum of that of the terms of every step and that of the lazy ones.
    own = {"d": [each.op for each in traced["own"]], "g": [each.op.inputs[0].op for each in traced["gradients"]["g"]]}
    of_generated = of_pictures = own["d"][: len(model.discriminator.trainable_variables)]
    if not together:  # the sums of real and of generated ones'
        of_generated, of_real = ([total.inputs[i].op for total in of_pictures] for i in range(2))
        assert before["g/l1"].issuperset(of_real) and before["d/gan_swap"].issuperset(of_real)
    assert before["d/gan_swap"].isdisjoint(of_pictures)
    assert before["dp/fake"].issuperset(of_generated)
    assert before["g/code_consistency/style"].issuperset(own["d"])
    assert before["d/r1"].issuperset([*own["d"], *own["g"]])
    # Nor does anything else in there begin, such as what is made of kernels alone.
    (due,) = (op for op in {traced["terms"]["d/r1"].op.inputs[0].op, traced["terms"]["d/r1"].op} if op.type == "If")
    assert set(own["g"]).issubset(needed([due.inputs[0].op]))


def test_what_lasts_is_updated_in_the_memory_that_it_has() -> None:
    model = make()
    model.compile()
    sides = {"g": model.generator_side, "d": model.discriminator_side}
    gradients = {side: [tf.zeros(each.shape) for each in own] for side, own in sides.items()}
    step = tf.function(lambda: model.update(gradients), autograph=False).get_concrete_function()
    replaced = [node for node in every_node(step.graph.as_graph_def()) if node.op == "AssignVariableOp"]
    assert all(node.attr["dtype"].type == tf.int64.as_datatype_enum for node in replaced), replaced  # steps are counted
    assert any(op.type == "AssignAddVariableOp" for op in step.graph.get_operations())


def test_averages_begin_in_memory_of_their_own() -> None:
    """A variable that is given another's tensor shares it until one of them is updated, which then has to move."""
    model = TCP(small_config())
    for average, network in model._averages():
        for own, source in zip(average.weights, network.weights):
            views = [np.asarray(memoryview(tf.convert_to_tensor(each))) for each in (own, source)]
            assert not np.shares_memory(*views) and np.array_equal(*views)


def test_zeros_are_not_known_beforehand() -> None:
    """TensorFlow would keep them as constants, as much as all weights, for as long as a step's function is there."""
    model = make("train.accumulate=2")
    step = tf.function(model.accumulated_gradients, autograph=False).get_concrete_function(small_batch(model.config))
    (loop,) = (op for op in step.graph.get_operations() if op.type.endswith("While"))
    fills = [each.op for each in loop.inputs if each.op.type == "Fill"]
    assert len(fills) == len(model.generator_side + model.discriminator_side)
    assert all("ReadVariableOp" in {op.type for op in needed([fill])} for fill in fills)


@pytest.mark.parametrize("shift", [-30.0, 0.0, 30.0])
def test_the_turned_gradient_holds_for_confident_critics(model: TCP, shift: float) -> None:
    """d/dl of w_g softplus(-l), made of that of w_d softplus(l), at logits as large as a lost game has them."""
    logits = tf.constant([-2.0, 0.0, 3.0]) + shift
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        own = 0.6 * tf.nn.softplus(logits)
        wanted = 1.0 * tf.nn.softplus(-logits)
    turned = tape.gradient(own, logits) * model.critics._turn("g/gan_swap", "d/gan_swap", logits)[:, 0, 0, 0]
    np.testing.assert_allclose(turned, tape.gradient(wanted, logits), rtol=1e-4)


# ---- which terms, and when


def terms_at(model: TCP, step: int) -> dict[str, float]:
    model.step.assign(step)
    model.warming_up = step < model.objective.warm_up
    _, terms = model.gradients(small_batch(model.config))
    return {name: float(tf.reduce_mean(values)) for name, values in terms.items()}


def test_lazy_terms_are_computed_on_their_steps_only(first_step: TCP) -> None:
    """R1 every 3 steps, code consistency and content alignment every 2, all others always."""
    for step in range(5):
        terms = terms_at(first_step, step)
        assert set(terms) == GENERATOR_TERMS | TCP_TERMS | CRITIC_TERMS | R1_TERMS | VARIANCES
        computed = {name for name, value in terms.items() if value != 0}
        lazy = (R1_TERMS if step % 3 == 0 else set()) | (TCP_TERMS if step % 2 == 0 else set())
        assert computed == set(terms) - R1_TERMS - TCP_TERMS | lazy, step


def test_consistency_starts_when_told() -> None:
    model = make("loss.consistency_every=1", "loss.consistency_start_kimg=0.008")  # two steps of 4 pictures
    started = [bool(terms_at(model, step)["g/content_alignment"]) for step in (0, 1, 2, 3)]
    assert started == [False, False, True, True]


def test_the_autoencoder_learns_alone_until_the_adversaries_start() -> None:
    """Two steps of 4 pictures, each reconstructed from the content of a recoloured copy; then as without a warm-up."""
    settings = ("augment.content_colours=0.5", "loss.consistency_every=1", "loss.r1_every=2")
    model, plain = make("loss.gan_start_kimg=0.008", *settings), make(*settings)
    expected = GENERATOR_TERMS | TCP_TERMS | CRITIC_TERMS | R1_TERMS | VARIANCES
    assert all(set(terms_at(model, step)) == expected for step in (0, 2))
    for step in (0, 1):
        assert {name for name, value in terms_at(model, step).items() if value} == {"g/l1"} | VARIANCES
    assert terms_at(model, 2) == pytest.approx(terms_at(plain, 2), rel=1e-5)

    model.step.assign(0)
    model.warming_up = True
    compute = tf.function(model.gradients, autograph=False)

    def difference(batch: Batch) -> float:
        draws = Draws(model.config, model.step, batch["position"])
        with tf.GradientTape() as tape:
            recoloured = ops.mix_colours(batch["image"], *draws.colour_maps())
            content, style = model.encoder(recoloured).content, model.encoder(batch["image"]).style
            noise = draws.noise(model.generator, NOISE_RECONSTRUCTION)
            objective = model.objective.weights["g/l1"] * tf.reduce_mean(
                tf.abs(model.generator(content, style, noise) - batch["image"])
            )
        wanted = tape.gradient(objective, model.generator_side, unconnected_gradients="zero")
        gradients, _ = compute(batch)
        assert not gradients["d"]
        return relative_difference(gradients["g"], wanted)

    assert_equal_but_for_rounding(model.config, difference)


def test_codes_of_swaps_start_when_told() -> None:
    """One step of 4 pictures without them; then every first content and every second style is that of a fixed swap."""
    settings = ("augment={content_colours: 0.5, colour_clusters: 2}", "loss.gan_start_kimg=1")
    model, plain = make(*settings, "augment.swaps_start_kimg=0.004"), make(*settings)
    batch = small_batch(model.config)
    images = batch["image"]
    features, codes = model._encode(images, Draws(model.config, model.step, batch["position"]))
    expected_features, expected = plain._encode(images, Draws(plain.config, plain.step, batch["position"]))
    for ours, theirs in zip((features, *codes), (expected_features, *expected)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    model.step.assign(1)
    model.warming_up = True
    compute = tf.function(model.gradients, autograph=False)

    def difference(batch: Batch) -> float:
        images = batch["image"]
        draws = Draws(model.config, model.step, batch["position"])
        content, style = model.encoder(images)
        noise = draws.noise(model.generator, NOISE_COPY, every=2)
        swaps = tf.clip_by_value(model.generator(content[::2], style[1::2], noise), -1.0, 1.0)
        recoloured = ops.mix_clusters(images, *draws.colour_clusters())
        with tf.GradientTape() as tape:
            copies = tf.stack([swaps[0], recoloured[1], swaps[1], recoloured[3]])
            content, styles = model.encoder(copies).content, (model.encoder(images).style, model.encoder(swaps).style)
            style = tf.stack([styles[0][0], styles[1][0], styles[0][2], styles[1][1]])
            decoded = model.generator(content, style, draws.noise(model.generator, NOISE_RECONSTRUCTION))
            objective = model.objective.weights["g/l1"] * tf.reduce_mean(tf.abs(decoded - images))
        wanted = tape.gradient(objective, model.generator_side, unconnected_gradients="zero")
        gradients, _ = compute(batch)
        return relative_difference(gradients["g"], wanted)

    assert_equal_but_for_rounding(model.config, difference)


def test_keras_fits_through_both_phases() -> None:
    """A warm-up of two steps, in which the discriminators' optimizer waits; then lazy terms on every third."""
    model = make("loss.gan_start_kimg=0.008", "loss.r1_every=3", "loss.consistency_every=3")
    model.compile()
    batches = tf.data.Dataset.from_tensors(small_batch(model.config)).repeat()
    seen = []
    for _ in range(5):
        before = arrays(model.discriminator_side)
        history = model.fit(batches, epochs=1, steps_per_epoch=1, verbose=0).history
        changed = [not np.array_equal(old, new) for old, new in zip(before, model.discriminator_side)]
        assert len({any(changed), *(history[name][0] > 0 for name in ("d/gan_real", "gradients/d"))}) == 1
        assert len({history[name][0] > 0 for name in TCP_TERMS | R1_TERMS}) == 1
        seen.append((any(changed), history["d/r1"][0] > 0))
    assert seen == [(False, False), (False, False), (True, False), (True, True), (True, False)]
    assert (int(model.optimizer.iterations), int(model.discriminator_optimizer.iterations)) == (5, 3)


def test_the_baseline_has_no_trace_of_the_new_terms() -> None:
    shipped = configuration.load(CONFIGS / "sa_quickstart.yaml")
    model = TCP(small_config().model_copy(update={"loss": shipped.loss}))
    assert set(terms_at(model, 0)) == GENERATOR_TERMS | CRITIC_TERMS | R1_TERMS | VARIANCES


@pytest.mark.parametrize(
    ("removed", "zeros"),
    [
        ({"g/l1"}, ["loss.g.l1=0"]),
        ({"g/patch_gan", "dp/real", "dp/fake", "dp/r1"}, ["loss.g.patch_gan=0", "loss.dp={real: 0, fake: 0, r1: 0}"]),
        ({"g/gan_rec", "d/gan_rec"}, ["loss.g.gan_rec=0", "loss.d.gan_rec=0"]),
        ({"g/content_alignment"}, ["loss.g.content_alignment=0"]),
        ({"g/code_consistency/style"}, ["loss.g.code_consistency.style=0"]),
        (R1_TERMS, ["loss.d.r1=0", "loss.dp.r1=0"]),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else None,
)
def test_weight_0_removes_a_term(removed: set, zeros: list) -> None:
    model = make(*zeros)
    present = terms_at(model, 0)
    assert set(present) == (GENERATOR_TERMS | TCP_TERMS | CRITIC_TERMS | R1_TERMS | VARIANCES) - removed


def test_what_nothing_depends_on_stays_as_it_is() -> None:
    """No adversaries and no noise: an autoencoder, whose unused variables get gradients of zero."""
    model = make(
        *("model.noise=false", "loss.g.gan_rec=0", "loss.g.gan_swap=0", "loss.g.patch_gan=0"),
        *("loss.d={gan_real: 0, gan_rec: 0, gan_swap: 0, r1: 0}", "loss.dp={real: 0, fake: 0, r1: 0}"),
    )
    model.compile()
    before = [arrays(variables) for variables in (model.generator_side, model.discriminator_side)]
    terms = model.train_step(small_batch(model.config))
    assert set(terms) == {"g/l1"} | TCP_TERMS | VARIANCES | LENGTHS
    for variable, old in zip(model.generator_side, before[0]):
        assert np.array_equal(variable, old) == (kind(variable) == "noise_strength"), label(variable)
    for variable, old in zip(model.discriminator_side, before[1]):
        assert np.array_equal(variable, old), label(variable)


# ---- averages


def test_the_running_average() -> None:
    """4 pictures a step: half-lives of 1 picture (a quarter of 4), 2 (of 8) and then the configured 2 and no more."""
    model = make("ema.half_life_kimg=0.002")
    model.compile()
    averages = [*model.encoder_ema.weights, *model.generator_ema.weights]
    networks = [*model.encoder.weights, *model.generator.weights]
    expected = arrays(averages)
    for decay in (0.5**4, 0.5**2, 0.5**2):
        model.train_step(small_batch(model.config))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, arrays(networks))]
        for average, value in zip(averages, expected):
            np.testing.assert_allclose(average, value, atol=1e-6)
    assert not model.encoder_ema.trainable_variables and not model.generator_ema.trainable_variables


def test_the_average_starts_as_a_copy_and_is_what_answers() -> None:
    model = TCP(small_config())
    for average, network in ((model.encoder_ema, model.encoder), (model.generator_ema, model.generator)):
        assert all(np.array_equal(a, b) for a, b in zip(average.weights, network.weights))
    images = small_batch(model.config)["image"]
    before = model(images)
    enliven(model.encoder, model.generator)
    np.testing.assert_array_equal(model(images), before)
    enliven(model.encoder_ema, model.generator_ema)
    assert np.abs(model(images) - before).max() > 1e-2


def test_a_half_life_in_kimg() -> None:
    model = TCP(small_config("data.batch_size=8", "ema.half_life_kimg=10"))
    late, early = (float(model.average_decay(tf.constant(step, tf.int64))) for step in (10**6, 499))
    assert late ** (10_000 / 8) == pytest.approx(0.5, rel=1e-3)
    assert early ** (1_000 / 8) == pytest.approx(0.5, rel=1e-3)  # a quarter of 4,000 pictures


# ---- batches, precision


def test_a_batch_that_does_not_divide_evenly_is_refused_with_both_numbers() -> None:
    with (
        tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope(),
        pytest.raises(ValueError, match="same even number of pictures, got 6 for 2 replicas"),
    ):
        TCP(small_config("data.batch_size=6"))
    with pytest.raises(
        ValueError, match="each of 3 parts of each replica the same even number of pictures, got 8 for 1"
    ):
        TCP(small_config("data.batch_size=8", "train.accumulate=3"))


def test_parts_side_by_side_are_as_many_as_pairs_allow() -> None:
    def at_once(*overrides: str) -> int:
        return TCP(small_config("train.concurrent=4", *overrides)).concurrent

    assert [at_once(f"data.batch_size={size}") for size in (2, 6, 8, 12)] == [1, 3, 4, 3]
    assert at_once("data.batch_size=8", "train.accumulate=2") == 2
    assert at_once("data.batch_size=8", "train.xla=true") == 1
    with target.assumed(gpu=True):
        assert at_once("data.batch_size=8") == 1


def test_xla_is_for_one_device() -> None:
    with (
        tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope(),
        pytest.raises(ValueError, match="train.xla: a step is compiled for one device, got 2 replicas"),
    ):
        TCP(small_config("train.xla=true"))


def test_held_out_terms() -> None:
    model = make()
    terms = model.test_step(small_batch(model.config))
    assert set(terms) == {"g/l1", "g/code_consistency/content", "g/code_consistency/style"}
    assert all(np.isfinite(value) for value in terms.values())


def test_mixed_bfloat16() -> None:
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = make("mixed_precision=mixed_bfloat16")
        model.compile()
    finally:
        keras.mixed_precision.set_global_policy(policy)
    before = arrays(model.generator_side + model.discriminator_side)
    terms = model.train_step(small_batch(model.config))
    assert all(np.isfinite(value) and value.dtype == tf.float32 for value in terms.values())
    assert model.encoder.trunk(small_batch(model.config)["image"]).dtype == tf.bfloat16
    for variable, old in zip(model.generator_side + model.discriminator_side, before):
        assert variable.dtype == "float32" and np.all(np.isfinite(variable))
        assert not np.array_equal(variable, old), label(variable)
    full = make()
    full.set_weights(model.get_weights())
    full.step.assign(0)
    model.step.assign(0)
    terms, expected = (each.gradients(small_batch(model.config))[1] for each in (model, full))
    for name, values in expected.items():
        np.testing.assert_allclose(terms[name], values, rtol=0.2, atol=0.05, err_msg=name)


# ---- replicas


def unfitted(config: Config, devices: list) -> TCP:
    """The same model on any devices."""
    with tf.distribute.MirroredStrategy(devices).scope():
        keras.utils.set_random_seed(3)
        model = TCP(config)
        enliven(model.encoder, model.generator, model.discriminator, model.patch_discriminator)
        model.compile()
    return model


def fitted(config: Config, devices: list, directory: Path, steps: int) -> TCP:
    """A model after `steps` steps on the way of `train.py`, but without the graph's optimisation, which takes long."""
    model = unfitted(config, devices)
    manager = run_dir.manager(directory, model.checkpoint(), 1)
    held_out = small_batch(config)["image"].numpy()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        training.fit(model, Noise(30, config.data.resolution), directory, manager, held_out, 0, steps)
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    return model


@pytest.mark.slow(40)
def test_two_replicas_are_one(tmp_path: Path) -> None:
    """The whole method, 4 steps: R1 on two of them, TCP's losses on two; weights, averages and optimizers' state.

    Adam divides a gradient by its own size: at its usual epsilon a gradient of almost 0 becomes a whole step in the
    direction of its rounding, and one that is wrong by a factor looks right. A larger epsilon, and plain gradient
    descent on the other side, leave neither.
    """
    config = small_config(
        *("data.batch_size=8", "loss.r1_every=3", "loss.consistency_every=2", "augment.content_colours=0.5"),
        *("optimizer.generator.args.epsilon=1e-3", "optimizer.discriminator={name: sgd, learning_rate: 0.01}"),
    )
    one = fitted(config, ["CPU:0"], tmp_path / "one", 4)
    two = fitted(config, ["CPU:0", "CPU:1"], tmp_path / "two", 4)
    assert one.step.numpy() == two.step.numpy() == 4
    assert len(one.weights) == len(two.weights) > 150
    for ours, theirs in zip(one.weights, two.weights):
        assert label(ours) == label(theirs)
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5, err_msg=label(ours))
    for name in ("optimizer", "discriminator_optimizer"):
        for ours, theirs in zip(getattr(one, name).variables, getattr(two, name).variables):
            scale = float(tf.reduce_max(tf.abs(tf.cast(ours, tf.float32)))) + 1e-12
            np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4 * scale, err_msg=label(ours))


@pytest.mark.slow(40)
def test_two_replicas_are_one_in_mixed_bfloat16(tmp_path: Path) -> None:
    """Two steps of gradient descent, R1 and TCP's losses due on the first: the same way, but for 8 bits' rounding."""
    config = small_config(
        *("data.batch_size=8", "mixed_precision=mixed_bfloat16", "augment.content_colours=0.5"),
        *(f"optimizer.{side}={{name: sgd, learning_rate: 0.01}}" for side in ("generator", "discriminator")),
    )
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        start = unfitted(config, ["CPU:0"])
        one = fitted(config, ["CPU:0"], tmp_path / "one", 2)
        two = fitted(config, ["CPU:0", "CPU:1"], tmp_path / "two", 2)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    for side in ("generator_side", "discriminator_side"):
        ways = [
            [after - before for after, before in zip(arrays(getattr(model, side)), arrays(getattr(start, side)))]
            for model in (one, two)
        ]
        assert all(np.isfinite(change).all() for change in ways[1]) and any(np.any(change) for change in ways[0])
        # Rounding makes 0.02 to 0.07, by the CPU; a sum in a mean's place would make 1.
        assert relative_difference(ways[1], ways[0]) < 0.15
