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
from collections.abc import Sequence
from typing import Any, Callable, Optional

import keras
import tensorflow as tf

from tcp_tf import blending, guards, losses, ops, optimizers, target
from tcp_tf.autoencoder import AutoEncoder, build_encoder, build_generator
from tcp_tf.config import Config
from tcp_tf.discriminators import Discriminator, PatchDiscriminator
from tcp_tf.draws import NOISE_COPY, NOISE_RECONSTRUCTION, NOISE_SWAP, Draws
from tcp_tf.encoder import Codes
from tcp_tf.gradients import of_maps_alone
from tcp_tf.objective import CONSISTENCY_TERMS, CRITICISM_TERMS, R1_TERMS, RECONSTRUCTION, Objective

AVERAGED_SHARE = 0.25  # the half-life of the averages is at most this share of all pictures seen
LOT = 2**25  # numbers of a discriminator's widest maps that are kept at a time on a CPU
Terms = dict[str, tf.Tensor]  # name -> one value per example


def build_discriminator(config: Config) -> Discriminator:
    """The image discriminator that the configuration describes, freshly drawn."""
    model = config.model
    return Discriminator(
        resolution=config.data.resolution,
        channels=4 * model.channels,
        max_channels=model.max_channels,
        capacity=model.discriminator_capacity,
        recompute=config.train.recompute,
        name="discriminator",
    )


def build_patch_discriminator(config: Config) -> PatchDiscriminator:
    """The patch discriminator that the configuration describes, freshly drawn."""
    model = config.model
    width = model.max_channels
    return PatchDiscriminator(
        patch_size=model.patch_size,
        channels=model.channels,
        max_channels=width * 3 // 4,
        capacity=model.patch_capacity,
        recompute=config.train.recompute,
        dense=(4 * width, 4 * width, 2 * width),
        name="patch_discriminator",
    )


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
        recompute = config.train.recompute
        self.encoder = build_encoder(config, recompute=recompute)
        self.generator = build_generator(config, recompute=recompute)
        self.discriminator = build_discriminator(config)
        self.patch_discriminator = build_patch_discriminator(config)
        self.encoder_ema = build_encoder(config, "encoder_ema")
        self.generator_ema = build_generator(config, "generator_ema")
        self.encoder_ema.trainable = self.generator_ema.trainable = False
        for average, network in self._averages():
            for own, source in zip(average.weights, network.weights):
                own.assign(tf.raw_ops.DeepCopy(x=tf.convert_to_tensor(source)))  # else both share one memory
        self.step = tf.Variable(
            0, dtype=tf.int64, trainable=False, name="step", aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
        self.objective = Objective(config.loss, replicas, config.data.batch_size, parts)
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
        return self.discriminator.trainable_variables + self.patch_discriminator.trainable_variables

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
        self.discriminator_optimizer.apply_gradients(zip(gradients["d"], self.discriminator_side))
        share = 1.0 - self.average_decay(tf.convert_to_tensor(self.step))
        for average, network in self._averages():
            for own, source in zip(average.weights, network.weights):
                optimizers.in_place(own).assign_add(share * (source - own))
        self.step.assign_add(1)

    def accumulated_gradients(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], Terms]:
        """`gradients` of `train.accumulate` equal parts of the batch, one after another: in the memory of one part.

        No example depends on another but on its neighbour, which is in the same part, so the sum over the parts is the
        gradient of the whole batch but for rounding, and so are the terms' means. Only the codes' variances are means
        over the parts instead of over the batch. With `train.xla` XLA compiles it all; its random numbers are others.
        """
        if self.config.train.xla and not target.xla():
            with target.assumed(xla=True):
                return tf.function(self.accumulated_gradients, autograph=False, jit_compile=True)(batch)
        parts = self.config.train.accumulate
        if parts == 1:
            return self.gradients(batch)
        sides = [*self.generator_side, *self.discriminator_side]
        names: list[str] = []

        def compute(part: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            gradients, terms = self.gradients(part)
            names[:] = terms
            return [mean_terms(terms) / parts, *gradients["g"], *gradients["d"]], []

        start = [tf.zeros([len(self.objective.weights) + len(Codes._fields)]), *self._zeros(sides)]
        (means, *gradients), _ = plus_sums_over_parts(start, parts, compute, batch)
        count = len(self.generator_side)
        return {"g": gradients[:count], "d": gradients[count:]}, dict(zip(names, tf.unstack(means)))

    def gradients(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], Terms]:
        """This replica's share of the gradients of `generator_side` and `discriminator_side`, and their terms."""
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
        return {"g": gradients, "d": self._zeros(self.discriminator_side)}, {**own, **none, **variances(codes)}

    def _every_gradient(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], Terms]:
        """Those of all terms that are due.

        The discriminators run forward and backward once, for both sides (see `_criticise`); encoder and generator
        take over at the pictures, so no tape is nested in another. What can wait does, so that the activations of one
        discriminator, of the consistency terms and of R1 are not in memory at the same time; real pictures are judged
        before there are any of the generator.
        """
        images = batch["image"]
        draws = Draws(self.config, self.step, batch["position"])
        boxes = draws.boxes(sets=3)  # N 3 K 4
        real_terms, real_gradients = self._judge_real(images)
        (images,) = ops.after(real_gradients, images)
        with tf.GradientTape() as tape:
            features, codes = self._encode(images, draws)
            reconstruction, swap, noise_swap = self._fakes(codes, draws)
            swap_crops = ops.crop_and_resize(swap, boxes[:, 2], self.config.model.patch_size)  # N K P P 3
            own = {RECONSTRUCTION: losses.l1(reconstruction, images[::2])}
            fakes, made = [reconstruction, swap, swap_crops], [features, *codes, swap]
            with tape.stop_recording():
                discriminator_gradients, pulls, critic_terms = self._criticise(images, fakes, boxes, real_gradients)
                waited = ops.after([*discriminator_gradients, *pulls], *made)
                lazy_terms, lazy_gradients = self._consistency_terms(images, waited, noise_swap, draws)
            terms = {**own, **lazy_terms, **real_terms, **critic_terms}
            pulled = [*zip(fakes, pulls), *zip(made, lazy_gradients)]
            objective = self.objective.total(("g",), self._wanted(own))
            objective += tf.add_n([tf.reduce_sum(tf.cast(x * pull, tf.float32)) for x, pull in pulled])
        generator_gradients = gradients_or_zeros(tape, objective, self.generator_side)
        generator_gradients = sums(generator_gradients, lazy_gradients[len(made) :])
        images, boxes = ops.after(generator_gradients, images, boxes)
        penalties, discriminator_gradients = self._plus_r1(discriminator_gradients, images, boxes)
        terms = self._wanted({**terms, **penalties})
        return {"g": generator_gradients, "d": discriminator_gradients}, {**terms, **variances(codes)}

    def _wanted(self, terms: Terms) -> Terms:
        return {name: values for name, values in terms.items() if self.objective.wants(name)}

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
        half = codes.content.shape[0] // 2
        return fakes[:half], fakes[half:], noise_swap

    def _judge_real(self, images: tf.Tensor) -> tuple[Terms, list[tf.Tensor]]:
        """The image discriminator's term of real pictures, and its gradients of that discriminator's variables."""

        def compute() -> Terms:
            return self._wanted({"d/gan_real": losses.judged_real(self.discriminator(images))})

        return self._with_gradients(compute, [], self.discriminator.trainable_variables)

    def _criticise(self, images: tf.Tensor, fakes: list[tf.Tensor], boxes: tf.Tensor, real_gradients: list[tf.Tensor]):
        """Both discriminators' other terms, the gradients of their own objective, and what pulls at generated pictures.

        A logit l of a generated picture enters the discriminator's objective as `w_d softplus(l)` and the
        generator's as `w_g softplus(-l)`. No example touches another inside a discriminator, so the two gradients
        with respect to that picture differ by the factor of their derivatives, `-(w_g / w_d) exp(-l)`: one backward
        pass serves both. For the same reason it can be done in lots, see `lots`.

        Args:
            images: real pictures, `[N, R, R, 3]`.
            fakes: reconstructions `[N/2, R, R, 3]`, swaps `[N, R, R, 3]`, crops of swaps `[N, K, P, P, 3]`.
            boxes: `[N, 3, K, 4]`; the first two sets are cut out of the real pictures.
            real_gradients: those of `_judge_real`, which are added.
        Returns:
            Gradients of `discriminator_side`; the gradient of the generator's adversarial terms with respect to
            each of `fakes`; the terms by name.
        """
        lots, count = self.lots(images.shape[0]), len(real_gradients)
        if lots == 1:
            own, pulls, terms = self._criticise_lot(images, fakes, boxes)
            return [*sums(real_gradients, own[:count]), *own[count:]], pulls, terms

        kinds = ("reconstruction", "swap", "crops")

        def compute(part: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            own, pulls, terms = self._criticise_lot(part["image"], [part[kind] for kind in kinds], part["boxes"], lots)
            return [mean_terms({name: terms[name] for name in CRITICISM_TERMS}) / lots, *own], pulls

        batch = {"image": images, "boxes": boxes, **dict(zip(kinds, fakes))}
        patch_zeros = self._zeros(self.patch_discriminator.trainable_variables)
        start = [tf.zeros([len(CRITICISM_TERMS)]), *real_gradients, *patch_zeros]
        (means, *own), pulls = plus_sums_over_parts(start, lots, compute, batch, like=fakes)
        return own, pulls, dict(zip(CRITICISM_TERMS, tf.unstack(means)))

    def lots(self, examples: int) -> int:
        """In how many equal lots, whole pairs of neighbours each, the discriminators' activations are kept.

        On a CPU the least number with which the widest maps of a lot are at most `LOT` numbers, which is as fast there.
        """
        pairs = examples // 2
        if target.gpu() or target.xla():
            return 1
        of_pictures = 3 * self.discriminator.resolution**2 * self.discriminator.widths[0]
        of_crops = (
            6 * self.config.patches.crops * self.patch_discriminator.patch_size**2 * self.patch_discriminator.widths[0]
        )
        at_once = max(1, LOT // max(of_pictures, of_crops))
        return next(lots for lots in range(1, pairs + 1) if pairs % lots == 0 and pairs <= lots * at_once)

    def _criticise_lot(self, images: tf.Tensor, fakes: list[tf.Tensor], boxes: tf.Tensor, lots: int = 1):
        """What `_criticise` returns, of one lot; gradients are the lot's share of those of all."""
        *pictures, swap_crops = fakes
        with tf.GradientTape() as tape:
            tape.watch(pictures)
            fake_terms, logits = self._fake_terms(*pictures)
            objective = self.objective.total(("d",), self._wanted(fake_terms), lots)
        own = gradients_or_zeros(tape, objective, [*self.discriminator.trainable_variables, *pictures])
        own, pulls = own[: -len(pictures)], own[-len(pictures) :]

        images, boxes, swap_crops = ops.after([*own, *pulls], images, boxes, swap_crops)
        with tf.GradientTape() as tape:
            tape.watch(swap_crops)
            patch_terms, patch_logits = self._patch_terms(self._real_crops(images, boxes), swap_crops)
            objective = self.objective.total(("dp",), self._wanted(patch_terms), lots)
        *patch_own, patch_pull = gradients_or_zeros(
            tape, objective, [*self.patch_discriminator.trainable_variables, swap_crops]
        )
        pairs = [("g/gan_rec", "d/gan_rec"), ("g/gan_swap", "d/gan_swap"), ("g/patch_gan", "dp/fake")]
        every = zip([*pulls, patch_pull], pairs, [*logits, patch_logits])
        pulls = [pull * self._turn(*pair, values) for pull, pair, values in every]
        return [*own, *patch_own], pulls, {**fake_terms, **patch_terms}

    def _real_crops(self, images: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        """The first two sets of boxes cut out of real pictures: reference, then query, `[N, 2K, P, P, 3]`."""
        real_boxes = tf.concat([boxes[:, 0], boxes[:, 1]], axis=1)
        return ops.crop_and_resize(images, real_boxes, self.config.model.patch_size)

    def _turn(self, generator_term: str, discriminator_term: str, logits: tf.Tensor) -> tf.Tensor:
        """The factor `-(w_g / w_d) exp(-l)` of `_criticise`, with three axes more: `[..., 1, 1, 1]`."""
        if not self.objective.wants(generator_term):
            return tf.zeros([1] * (len(logits.shape) + 3))
        ratio = self.objective.weights[generator_term] / self.objective.weights[discriminator_term]
        # Below -60 the discriminator's own gradient leaves float32's range, and the product would be 0 * inf.
        return -ratio * tf.exp(-tf.maximum(logits, -60.0))[..., None, None, None]

    def _fake_terms(self, reconstruction: tf.Tensor, swap: tf.Tensor):
        every = self.discriminator(tf.concat([reconstruction, swap], axis=0))
        logits = tf.split(every, [reconstruction.shape[0], swap.shape[0]])
        terms = {
            "g/gan_rec": losses.judged_real(logits[0]),
            "g/gan_swap": losses.judged_real(logits[1]),
            "d/gan_rec": losses.judged_fake(logits[0]),
            "d/gan_swap": losses.judged_fake(logits[1]),
        }
        return terms, logits

    def _patch_terms(self, real_crops: tf.Tensor, swap_crops: tf.Tensor):
        features = self.patch_discriminator.features(tf.concat([real_crops, swap_crops], axis=1))
        reference, query, fake = tf.split(features, 3, axis=1)
        logits = self.patch_discriminator.pair(
            tf.concat([reference, ops.swap_pairs(reference)], axis=0), tf.concat([query, fake], axis=0)
        )
        real_logits, fake_logits = tf.split(logits, 2)
        terms = {
            "g/patch_gan": losses.judged_real(fake_logits),
            "dp/real": losses.judged_real(real_logits),
            "dp/fake": losses.judged_fake(fake_logits),
        }
        return terms, fake_logits

    def _plus_r1(self, gradients: list[tf.Tensor], images: tf.Tensor, boxes: tf.Tensor):
        """R1's terms, and the given gradients of `discriminator_side` with those of R1 added."""
        names = [name for name in R1_TERMS if self.objective.wants(name)]
        examples = images.shape[0]
        # What is differentiated twice cannot be recomputed; so the memory of one example is made to do.
        parts = examples if self.config.train.recompute else self.lots(examples)
        batch = {"image": images, "boxes": boxes}

        def compute(part: dict[str, tf.Tensor]) -> tuple[Terms, list[tf.Tensor]]:
            """One discriminator after the other."""

            def of_pictures() -> Terms:
                return self._wanted({"d/r1": self._image_r1(part["image"])})

            def of_crops() -> Terms:
                return self._wanted({"dp/r1": self._patch_r1(*tf.split(crops, 2, axis=1))})

            terms, own = self._with_gradients(of_pictures, [], self.discriminator.trainable_variables, parts)
            crops = self._real_crops(*ops.after(own, part["image"], part["boxes"]))
            variables = self.patch_discriminator.trainable_variables
            patch_terms, patch_own = self._with_gradients(of_crops, [], variables, parts)
            return {**terms, **patch_terms}, [*own, *patch_own]

        def together() -> tuple[Terms, list[tf.Tensor]]:
            terms, own = compute(batch)
            return terms, sums(gradients, own)

        def in_turn() -> tuple[Terms, list[tf.Tensor]]:
            def compute_tensors(part: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
                terms, own = compute(part)
                return [mean_terms(terms) / parts, *own], []

            start = [tf.zeros([len(names)]), *gradients]
            (means, *summed), _ = plus_sums_over_parts(start, parts, compute_tensors, batch)
            return {name: tf.fill([examples], means[i]) for i, name in enumerate(names)}, summed

        terms, summed = self._lazily(names, images, together if parts == 1 else in_turn, lambda: gradients)
        return terms, summed or gradients

    def _image_r1(self, images: tf.Tensor) -> tf.Tensor:
        """`gamma/2 |grad D(real)|^2` per example (arXiv 1801.04406)."""
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(self.discriminator(images, keep=True))
        with of_maps_alone():
            slope = tape.gradient(total, images)
        return self.config.loss.r1_gamma / 2.0 * losses.gradient_penalty(slope)

    def _patch_r1(self, reference: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        """`gamma/4 (|grad|^2 for the reference crops + the same for the query crops)` per example."""
        with tf.GradientTape() as tape:
            tape.watch([reference, query])
            total = tf.reduce_sum(self.patch_discriminator(reference, query, keep=True))
        with of_maps_alone():
            slopes = tape.gradient(total, [reference, query])
        penalties = [losses.gradient_penalty(slope) for slope in slopes]
        return self.config.loss.patch_r1_gamma / 4.0 * (penalties[0] + penalties[1])

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
        return self._lazily(
            names,
            made[-1],
            lambda: self._with_gradients(compute, made, self.generator_side),
            lambda: self._zeros([*made, *self.generator_side]),
        )

    def _with_gradients(self, compute, inputs: list[tf.Tensor], variables: list, parts: int = 1):
        """Terms `compute(*inputs)`, and their objective's gradients: of the inputs, then of the variables.

        With `parts` of one of so many equal parts, its share.
        """
        with tf.GradientTape() as tape:
            own = [tf.identity(x) for x in inputs]
            tape.watch(own)
            terms = compute(*own)
            objective = self.objective.total(("g", "d", "dp"), terms, parts)
        return terms, gradients_or_zeros(tape, objective, [*own, *variables])

    def _lazily(self, names: list[str], pictures: tf.Tensor, due, otherwise) -> tuple[Terms, list[tf.Tensor]]:
        """Terms and gradients that `due` gives on every so-manyth step; nothing without names.

        The gradients are taken where the terms are computed. Left to an outer tape, every activation in there would
        have to leave the branch, and TensorFlow could neither fuse what makes it nor recompute it.

        Args:
            names: terms of one interval that have a weight.
            pictures: as many as each term has values, which are 0 on the other steps. Nothing begins before they are
                there, not the kernels either, which need no picture.
            due: gives the terms by name, and gradients.
            otherwise: gives the gradients of the other steps.
        """
        if not names:
            return {}, []
        zeros = {name: tf.zeros(pictures.shape[:1]) for name in names}
        (step,) = ops.after([pictures], tf.convert_to_tensor(self.step))
        return tf.cond(self.objective.due(names[0], step), due, lambda: (zeros, otherwise()))

    def _zeros(self, sources: list) -> list[tf.Tensor]:
        """Zeros of the shapes and types of tensors or variables, made when they are needed.

        Those that TensorFlow can work out beforehand it keeps, as much as all weights, for as long as the function is
        there.
        """
        zero = self.step < 0  # which it cannot know
        return [tf.fill(source.shape, tf.cast(zero, source.dtype)) for source in sources]

    def _logged(self, terms: Terms) -> dict[str, tf.Tensor]:
        """Means over the global batch: one small all-reduce for all terms together."""
        means = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, mean_terms(terms))
        return dict(zip(terms, tf.unstack(means)))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        """Keras 3 would draw a batch to learn shapes, with a reduction that fails for several workers.

        Nothing here waits for shapes: every variable is there from the beginning.
        """


def mean_terms(terms: Terms) -> tf.Tensor:
    """The mean of each term's values, `[terms]`."""
    return tf.stack([tf.reduce_mean(values) for values in terms.values()])


def plus_sums_over_parts(
    start: list[tf.Tensor],
    parts: int,
    compute: Callable[[dict[str, tf.Tensor]], tuple[list[tf.Tensor], list[tf.Tensor]]],
    batch: dict[str, tf.Tensor],
    like: Sequence[tf.Tensor] = (),
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Calls `compute` with equal parts of the batch, one after another.

    Returns:
        `start` plus the sums of its first tensors; its second ones of all parts, which are of the shapes of `like`.
    """
    stacked = {name: in_parts(value, parts) for name, value in batch.items()}
    arrays = [tf.TensorArray(each.dtype, parts, element_shape=in_parts(each, parts).shape[1:]) for each in like]

    def add(number: tf.Tensor, totals: list[tf.Tensor], arrays: list[tf.TensorArray]):
        values, others = compute({name: every[number] for name, every in stacked.items()})
        return number + 1, sums(totals, values), [a.write(number, other) for a, other in zip(arrays, others)]

    (first,) = ops.after(list(batch.values()), tf.constant(0))  # else what needs no batch is made long before
    # TensorFlow would work on up to ten parts at the same time.
    _, totals, arrays = tf.while_loop(
        lambda number, *_: number < parts,
        add,
        [first, start, arrays],
        parallel_iterations=1,
        maximum_iterations=parts,
    )
    return totals, [tf.reshape(array.stack(), each.shape) for array, each in zip(arrays, like)]


def in_parts(values: tf.Tensor, parts: int) -> tf.Tensor:
    """`[N, ...]` as `[parts, N / parts, ...]`."""
    return tf.reshape(values, [parts, values.shape[0] // parts, *values.shape[1:]])


def interleaved(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """First and second neighbours, `[N, ...]` each, in their places in the batch: `[2 N, ...]`."""
    return tf.reshape(tf.stack([first, second], axis=1), [2 * first.shape[0], *first.shape[1:]])


def sums(gradients: list[tf.Tensor], lazy: list[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients with those of lazy terms added; as they are where there are no such terms."""
    return [a + b for a, b in zip(gradients, lazy)] if lazy else gradients


def variances(codes: Codes) -> Terms:
    """Of each code over the batch: constant codes are the trivial answer to code consistency."""
    return {f"codes/{name}_variance": tf.math.reduce_variance(x, axis=0) for name, x in codes._asdict().items()}


def gradients_or_zeros(tape: tf.GradientTape, target: tf.Tensor, sources: list) -> list[tf.Tensor]:
    """Gradients of a scalar; zeros for sources that it does not depend on, such as networks whose terms are removed.

    TensorFlow's `unconnected_gradients="zero"` does not know Keras 3's variables.
    """
    gradients = tape.gradient(target, sources)
    return [tf.zeros(s.shape, s.dtype) if g is None else g for g, s in zip(gradients, sources)]
