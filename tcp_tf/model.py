"""TCP: the algorithm. The only place that knows encoder, generator and both discriminators together.

A training step, on neighbours (2k, 2k + 1) of the batch:

    codes          = encoder(real)
    reconstruction = generator(codes of every first neighbour)            half of the batch, as in the official code
    swap           = generator(own content, the neighbour's style)        in the same call
    terms          = losses on those, the discriminators' and the generator's from the same forward passes
    every r1_every steps:          R1 of both discriminators
    every consistency_every steps: code consistency and content alignment, sharing one re-encoding of the swap

Both optimizers then step on gradients taken at the same weights. Why pairs of neighbours: `ops.swap_pairs`. Until
`loss.gan_start_kimg` a step reconstructs all of the batch and does nothing else.
"""

from __future__ import annotations

import math
from typing import Any, Optional

import keras
import tensorflow as tf

from tcp_tf import blending, guards, losses, ops, optimizers, target
from tcp_tf.autoencoder import AutoEncoder, build_encoder, build_generator
from tcp_tf.config import Config
from tcp_tf.critics import Critics
from tcp_tf.draws import NOISE_COPY, NOISE_RECONSTRUCTION, NOISE_SWAP, Draws
from tcp_tf.encoder import Codes
from tcp_tf.objective import CONSISTENCY_TERMS, RECONSTRUCTION, Objective, gradients_or_zeros
from tcp_tf.parts import Terms, mean_terms, plus_sums_over_parts, sums, sums_side_by_side, zeros

AVERAGED_SHARE = 0.25  # the half-life of the averages is at most this share of all pictures seen


class TCP(keras.Model):
    """Encoder, generator, two discriminators, and the running averages that are evaluated and exported.

    Build it and call `compile` inside the strategy's scope. Batches are dicts of `image` `[N, R, R, 3]` in [-1, 1]
    and `position` `[N]`, the place of each example in the global batch.

    Raises:
        ValueError: the global batch does not give every replica the same even number of pictures, or there are
            several replicas with `train.xla`.
    """

    train_function: Any

    def __init__(self, config: Config, **kwargs):
        super().__init__(name="tcp", **kwargs)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        parts = config.train.accumulate
        if config.data.batch_size % (2 * replicas * parts):
            each = f"each of {parts} parts of each replica" if parts > 1 else "each replica"
            raise ValueError(
                f"data.batch_size must give {each} the same even number of pictures, "
                f"got {config.data.batch_size} for {replicas} replicas"
            )
        if config.train.xla and replicas > 1:
            raise ValueError(f"train.xla: a step is compiled for one device, got {replicas} replicas")
        self.config = config
        self.concurrent = 1 if target.gpu() else config.parts_at_once(replicas)
        recompute = config.train.recompute
        self.encoder = build_encoder(config, recompute=recompute)
        self.generator = build_generator(config, recompute=recompute)
        self.step = tf.Variable(
            0, dtype=tf.int64, trainable=False, name="step", aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
        self.objective = Objective(config.loss, replicas, config.data.batch_size, parts * self.concurrent)
        self.critics = Critics(config, self.objective, self.step)
        self.discriminator, self.patch_discriminator = self.critics.discriminator, self.critics.patch_discriminator
        self.encoder_ema = build_encoder(config, "encoder_ema")
        self.generator_ema = build_generator(config, "generator_ema")
        self.encoder_ema.trainable = self.generator_ema.trainable = False
        for average, network in self._averages():
            for own, source in zip(average.weights, network.weights):
                own.assign(tf.raw_ops.DeepCopy(x=tf.convert_to_tensor(source)))  # else both share one memory
        self.warming_up = self.objective.warm_up > 0  # what is traced or called now is a step of the warm-up
        self.ema = AutoEncoder(
            self.encoder_ema, self.generator_ema, strategy=config.blend.strategy, noise=config.model.noise
        )
        self.built = True

    def average_decay(self, step: tf.Tensor) -> tf.Tensor:
        """What the old average counts for after the given step (a scalar, counted from 0).

        The half-life grows with the training up to its value: in a short one, too, the average forgets the beginning.
        """
        seen = tf.cast(step + 1, tf.float32) * self.config.data.batch_size
        half_life = tf.minimum(1000.0 * self.config.ema.half_life_kimg, AVERAGED_SHARE * seen)
        return 0.5 ** (self.config.data.batch_size / half_life)

    def _averages(self):
        return ((self.encoder_ema, self.encoder), (self.generator_ema, self.generator))

    # What a trained model does, with the averaged weights.

    def encode(self, images: tf.Tensor) -> Codes:
        """See `AutoEncoder.encode`."""
        return self.ema.encode(images)

    def decode(self, content: tf.Tensor, style: tf.Tensor) -> tf.Tensor:
        """See `AutoEncoder.decode`."""
        return self.ema.decode(content, style)

    def swap(self, images: tf.Tensor, style_images: tf.Tensor) -> tf.Tensor:
        """See `AutoEncoder.swap`."""
        return self.ema.swap(images, style_images)

    def masked_blend(
        self, images: tf.Tensor, style_images: tf.Tensor, masks: tf.Tensor, strength: Optional[tf.Tensor] = None
    ) -> tf.Tensor:
        """See `AutoEncoder.masked_blend`."""
        return self.ema.masked_blend(images, style_images, masks, strength)

    def interpolate(self, images: tf.Tensor, first: tf.Tensor, second: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """See `AutoEncoder.interpolate`."""
        return self.ema.interpolate(images, first, second, weights)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Reconstruction with the averaged weights, `[N, H, W, 3]` -> the same."""
        return self.decode(*self.encode(images))

    # Training.

    def compile(self) -> None:
        """Makes and builds both optimizers from the configuration."""
        settings = self.config.optimizer
        self.discriminator_optimizer = optimizers.make(settings.discriminator, "optimizer.discriminator")
        super().compile(optimizer=optimizers.make(settings.generator, "optimizer.generator"), jit_compile=False)
        optimizers.build(self.optimizer, self.generator_side)
        optimizers.build(self.discriminator_optimizer, self.discriminator_side)

    def checkpoint(self) -> tf.train.Checkpoint:
        """All that a training continues from, once compiled: networks, averages, step and the optimizers' states.

        Both generations of Keras write and read it alike, which what they make of a whole model is not.
        """
        names = ("encoder", "generator", "discriminator", "patch_discriminator", "encoder_ema", "generator_ema", "step")
        parts = {name: getattr(self, name) for name in names}
        states = {name: optimizers.state(getattr(self, name)) for name in ("optimizer", "discriminator_optimizer")}
        return tf.train.Checkpoint(model=tf.train.Checkpoint(**parts, **states))

    @property
    def generator_side(self) -> list[tf.Variable]:
        """What the generator's optimizer owns."""
        return self.encoder.trainable_variables + self.generator.trainable_variables

    @property
    def discriminator_side(self) -> list[tf.Variable]:
        """What the discriminators' optimizer owns."""
        return self.critics.variables

    def make_train_function(self, force: bool = False):
        """Keras's, once for the warm-up and once for all later steps.

        Two graphs instead of one with a branch: TensorFlow fuses no operations in a branch as large as a step.
        """
        if self.train_function is None or force:
            functions = {}
            for warming_up in {False, self.objective.warm_up > 0}:
                super().make_train_function(force=True)
                functions[warming_up] = self.train_function

            def train_function(iterator):
                self.warming_up = int(self.step.numpy()) < self.objective.warm_up
                return functions[self.warming_up](iterator)

            self.train_function = train_function
        return self.train_function

    @tf.autograph.experimental.do_not_convert
    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of both optimizers; returns the raw terms' means over the global batch, by name.

        Terms of `objective.intervals` are computed on every so-manyth step only and are 0 on the others. Beside the
        terms stand `gradients/g` and `gradients/d`, the lengths of one replica's gradients (mean over the replicas).

        Raises:
            tf.errors.InvalidArgumentError: a mean or a gradient is not finite on some replica (see
                `guards.not_finite`); nothing has changed on any.
        """
        gradients, means = self.gradients_and_means(batch)
        with tf.control_dependencies([guards.assert_finite(means)]):
            self.update(gradients)
        # What several workers return Keras reduces along the first axis, which scalars do not have.
        return {name: mean[None] for name, mean in means.items()} if self.config.multi_worker else means

    def gradients_and_means(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], Terms]:
        """`accumulated_gradients`, and what a step returns."""
        gradients, terms = self.accumulated_gradients(batch)
        for side, values in gradients.items():
            terms[f"gradients/{side}"] = self.objective.replicas * guards.norm(values)
        return gradients, self._logged(terms)

    def update(self, gradients: dict[str, list[tf.Tensor]]) -> None:
        """One step of both optimizers with the gradients of `gradients`, then of the averages, and the count."""
        self.optimizer.apply_gradients(zip(gradients["g"], self.generator_side))
        if gradients["d"]:
            self.discriminator_optimizer.apply_gradients(zip(gradients["d"], self.discriminator_side))
        share = 1.0 - self.average_decay(tf.convert_to_tensor(self.step))
        for average, network in self._averages():
            for own, source in zip(average.weights, network.weights):
                optimizers.subtract(own, share, own - source)
        self.step.assign_add(1)

    def accumulated_gradients(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], Terms]:
        """`gradients` of equal parts of the batch: `train.accumulate`, one after another, of `train.concurrent` each.

        No example depends on another but on its neighbour, which is in the same part, so the sum over the parts is the
        gradient of the whole batch but for rounding, and so are the terms' means. Only the codes' variances are means
        over the parts instead of over the batch. With `train.xla` XLA compiles it all; its random numbers are others.
        """
        if self.config.train.xla and not target.xla():
            with target.assumed(xla=True):
                return tf.function(self.accumulated_gradients, autograph=False, jit_compile=True)(batch)
        parts = self.objective.parts
        if parts == 1:
            return self.gradients(batch)
        names: list[str] = []

        def share(part: dict[str, tf.Tensor]) -> list[tf.Tensor]:
            gradients, terms = self.gradients(part)
            names[:] = terms
            return [mean_terms(terms) / parts, *gradients["g"], *gradients["d"]]

        traced = tf.function(share, autograph=False) if self.concurrent > 1 else share  # once for all at work

        def compute(part: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            return sums_side_by_side(self.concurrent, traced, part), []

        in_turn, start = self.config.train.accumulate, []
        if in_turn > 1:
            sides = self.generator_side + ([] if self.warming_up else self.discriminator_side)
            start = [tf.zeros([len(self.objective.weights) + len(Codes._fields)]), *zeros(sides, self.step)]
        (means, *gradients), _ = plus_sums_over_parts(start, in_turn, compute, batch)
        count = len(self.generator_side)
        return {"g": gradients[:count], "d": gradients[count:]}, dict(zip(names, tf.unstack(means)))

    def gradients(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], Terms]:
        """This replica's share of the gradients of `generator_side` and `discriminator_side`, and their terms.

        In the warm-up the second list is empty.
        """
        return self._warm_up_gradients(batch) if self.warming_up else self._every_gradient(batch)

    def _warm_up_gradients(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], Terms]:
        """Those of the reconstruction of all pictures and nothing else; every other term is 0."""
        images = batch["image"]
        draws = Draws(self.config, self.step, batch["position"])
        with tf.GradientTape() as tape:
            _, codes = self._encode(images, draws)
            noise = draws.noise(self.generator, NOISE_RECONSTRUCTION)
            own = {RECONSTRUCTION: losses.l1(self.generator(*codes, noise), images)}
            objective = self.objective.total(("g",), own)
        gradients = gradients_or_zeros(tape, objective, self.generator_side)
        none = {name: tf.zeros([1]) for name in self.objective.starts}
        return {"g": gradients, "d": []}, {**own, **none, **variances(codes)}

    def _every_gradient(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], Terms]:
        """Those of all terms that are due.

        The discriminators run forward and backward once, for both sides (see `Critics.judge_generated`); encoder and
        generator take over at the pictures, so no tape is nested in another. What can wait does, so that the
        activations of one discriminator, of the consistency terms and of R1 are not in memory at the same time; real
        pictures are judged before there are any of the generator.
        """
        images = batch["image"]
        draws = Draws(self.config, self.step, batch["position"])
        boxes = draws.boxes(sets=3)  # N 3 K 4
        real_terms, real_gradients = self.critics.judge_real(images)
        (images,) = ops.after(real_gradients, images)
        with tf.GradientTape() as tape:
            features, codes = self._encode(images, draws)
            reconstruction, swap, noise_swap = self._fakes(codes, draws)
            swap_crops = ops.crop_and_resize(swap, boxes[:, 2], self.config.model.patch_size)  # N K P P 3
            firsts = tf.gather(images, range(0, images.shape[0], 2))  # a strided slice takes a CPU longer
            own = {RECONSTRUCTION: losses.l1(reconstruction, firsts)}
            fakes, made = [reconstruction, swap, swap_crops], [features, *codes, swap]
            with tape.stop_recording():
                discriminator_gradients, pulls, critic_terms = self.critics.judge_generated(
                    images, fakes, boxes, real_gradients
                )
                waited = ops.after([*discriminator_gradients, *pulls], *made)
                lazy_terms, lazy_gradients = self._consistency_terms(images, waited, noise_swap, draws)
            terms = {**own, **lazy_terms, **real_terms, **critic_terms}
            pulled = [*zip(fakes, pulls), *zip(made, lazy_gradients)]
            objective = self.objective.total(("g",), self.objective.wanted(own))
            objective += tf.add_n([tf.reduce_sum(tf.cast(x * pull, tf.float32)) for x, pull in pulled])
        generator_gradients = gradients_or_zeros(tape, objective, self.generator_side)
        generator_gradients = sums(generator_gradients, lazy_gradients[len(made) :])
        images, boxes = ops.after(generator_gradients, images, boxes)
        penalties, discriminator_gradients = self.critics.plus_r1(discriminator_gradients, images, boxes)
        terms = self.objective.wanted({**terms, **penalties})
        return {"g": generator_gradients, "d": discriminator_gradients}, {**terms, **variances(codes)}

    def test_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Reconstruction and code consistency of the averaged weights on held-out pictures, by name."""
        images = batch["image"]
        codes = self.encode(images)
        swap = self.decode(codes.content, ops.swap_pairs(codes.style))
        again = self.encode(swap)
        terms = {
            "g/l1": losses.l1(self.decode(*codes), images),
            "g/code_consistency/content": losses.l1(again.content, codes.content),
            "g/code_consistency/style": losses.l1(again.style, ops.swap_pairs(codes.style)),
        }
        return self._logged(terms)

    def _encode(self, images: tf.Tensor, draws: Draws) -> tuple[tf.Tensor, Codes]:
        """The trunk's features of the pictures, and their codes.

        With `augment.content_colours` the contents are those of copies in other colours: what a content code knew of
        colours would be of no use, so that they have to come with the style. With `augment.swaps_start_kimg` a
        swap of every two neighbours stands for both that it was made of: the first one's content is read from it, in a
        look of its own for each kind of region, and the second one's style, on another layout.
        """
        augment = self.config.augment
        if not augment.content_colours:
            features = self.encoder.trunk(images)
            return features, self.encoder.heads(features)
        if augment.colour_clusters:
            recoloured = ops.mix_clusters(images, *draws.colour_clusters())
        else:
            recoloured = ops.mix_colours(images, *draws.colour_maps())
        if augment.swaps_start_kimg is None:
            features, others = tf.split(self.encoder.trunk(tf.concat([images, recoloured], axis=0)), 2)
            return features, Codes(self.encoder.content_head(others), self.encoder.style_head(features))
        features = self.encoder.trunk(images)
        codes = self.encoder.heads(features)
        started = self.step >= math.ceil(1000 * augment.swaps_start_kimg / self.config.data.batch_size)
        first = tf.where(started, self._fixed_swaps(codes, draws), recoloured[::2])
        others = self.encoder.trunk(interleaved(first, recoloured[1::2]))
        second = tf.where(started, self.encoder.style_head(others[::2]), codes.style[1::2])
        return features, Codes(self.encoder.content_head(others), interleaved(codes.style[::2], second))

    def _fixed_swaps(self, codes: Codes, draws: Draws) -> tf.Tensor:
        """Every first neighbour with the other's style, as pictures that no gradient goes through: `[N/2, R, R, 3]`."""
        noise = draws.noise(self.generator, NOISE_COPY, every=2)
        swaps = self.generator(
            tf.stop_gradient(codes.content[::2]), tf.stop_gradient(ops.swap_pairs(codes.style)[::2]), noise
        )
        return tf.stop_gradient(tf.clip_by_value(swaps, -1.0, 1.0))

    def _fakes(self, codes: Codes, draws: Draws):
        """Reconstructions of every first neighbour and swaps of all, from one pass; and the swaps' noise."""
        noise_swap = draws.noise(self.generator, NOISE_SWAP)
        noise_reconstruction = draws.noise(self.generator, NOISE_RECONSTRUCTION, every=2)
        noise = None
        if noise_reconstruction is not None and noise_swap is not None:
            noise = [tf.concat(both, axis=0) for both in zip(noise_reconstruction, noise_swap)]
        fakes = self.generator(
            tf.concat([codes.content[::2], codes.content], axis=0),
            tf.concat([codes.style[::2], ops.swap_pairs(codes.style)], axis=0),
            noise,
        )
        count = codes.content.shape[0]
        return *tf.split(fakes, [count // 2, count]), noise_swap

    def _consistency_terms(self, images: tf.Tensor, made: list[tf.Tensor], noise_swap, draws: Draws):
        fixed = tf.stop_gradient if self.config.loss.stop_gradient_targets else tf.identity

        def compute(features: tf.Tensor, content: tf.Tensor, style: tf.Tensor, swap: tf.Tensor) -> Terms:
            swapped_style = ops.swap_pairs(style)
            swap_features = self.encoder.trunk(swap)
            values = {}
            if self.objective.wants(*CONSISTENCY_TERMS[:2]):
                again = self.encoder.heads(swap_features)
                values["g/code_consistency/content"] = losses.l1(again.content, fixed(content))
                values["g/code_consistency/style"] = losses.l1(again.style, fixed(swapped_style))
            if self.objective.wants("g/content_alignment"):
                masks = draws.masks()
                hybrid = blending.blend(
                    self.config.blend.strategy,
                    self.encoder,
                    self.generator,
                    content,
                    tf.stack([style, swapped_style], axis=1),
                    blending.region_weights(masks[:, None]),
                    features,
                    noise_swap,
                    swap_features,
                )
                values["g/content_alignment"] = losses.content_alignment(hybrid, fixed(swap), images, masks)
            return {name: values[name] for name in names}

        names = [name for name in CONSISTENCY_TERMS if self.objective.wants(name)]
        return self.objective.lazily(
            self.step,
            names,
            made[-1],
            lambda: self.objective.with_gradients(compute, made, self.generator_side),
            lambda: zeros([*made, *self.generator_side], self.step),
        )

    def _logged(self, terms: Terms) -> dict[str, tf.Tensor]:
        """Means over the global batch: one small all-reduce for all terms together."""
        means = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, mean_terms(terms))
        return dict(zip(terms, tf.unstack(means)))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        """Keras 3 would draw a batch to learn shapes, with a reduction that fails for several workers.

        Nothing here waits for shapes: every variable is there from the beginning.
        """


def interleaved(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """First and second neighbours, `[N, ...]` each, in their places in the batch: `[2 N, ...]`."""
    return tf.reshape(tf.stack([first, second], axis=1), [2 * first.shape[0], *first.shape[1:]])


def variances(codes: Codes) -> Terms:
    """Of each code over the batch: constant codes are the trivial answer to code consistency."""
    return {f"codes/{name}_variance": tf.math.reduce_variance(x, axis=0) for name, x in codes._asdict().items()}
