"""Both discriminators in a training: what they make of pictures, their gradients, R1, and in how many lots."""

from __future__ import annotations

import tensorflow as tf

from tcp_tf import losses, ops, target
from tcp_tf.config import Config
from tcp_tf.discriminators import Discriminator, PatchDiscriminator
from tcp_tf.gradients import of_maps_alone
from tcp_tf.objective import CRITICISM_TERMS, R1_TERMS, Objective, gradients_or_zeros
from tcp_tf.parts import Terms, mean_terms, plus_sums_over_parts, sums, zeros

LOT = 2**25  # numbers of a discriminator's widest maps that are kept at a time on a CPU


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


class Critics:
    """The discriminators of a training, freshly drawn, and all that is differentiated of them.

    Args:
        objective: of the training.
        step: its count of steps.
    """

    def __init__(self, config: Config, objective: Objective, step: tf.Variable):
        self.config, self.objective, self.step = config, objective, step
        self.discriminator = build_discriminator(config)
        self.patch_discriminator = build_patch_discriminator(config)

    @property
    def variables(self) -> list[tf.Variable]:
        """What the discriminators' optimizer owns."""
        return self.discriminator.trainable_variables + self.patch_discriminator.trainable_variables

    def judge_real(self, images: tf.Tensor) -> tuple[Terms, list[tf.Tensor]]:
        """The image discriminator's term of real pictures, and its gradients of that discriminator's variables."""

        def compute() -> Terms:
            return self.objective.wanted({"d/gan_real": losses.judged_real(self.discriminator(images))})

        return self.objective.with_gradients(compute, [], self.discriminator.trainable_variables)

    def judge_generated(
        self, images: tf.Tensor, fakes: list[tf.Tensor], boxes: tf.Tensor, real_gradients: list[tf.Tensor]
    ):
        """Both discriminators' other terms, the gradients of their own objective, and what pulls at generated pictures.

        A logit l of a generated picture enters the discriminator's objective as `w_d softplus(l)` and the
        generator's as `w_g softplus(-l)`. No example touches another inside a discriminator, so the two gradients
        with respect to that picture differ by the factor of their derivatives, `-(w_g / w_d) exp(-l)`: one backward
        pass serves both. For the same reason it can be done in lots, see `lots`.

        Args:
            images: real pictures, `[N, R, R, 3]`.
            fakes: reconstructions `[N/2, R, R, 3]`, swaps `[N, R, R, 3]`, crops of swaps `[N, K, P, P, 3]`.
            boxes: `[N, 3, K, 4]`; the first two sets are cut out of the real pictures.
            real_gradients: those of `judge_real`, which are added.
        Returns:
            Gradients of `variables`; the gradient of the generator's adversarial terms with respect to
            each of `fakes`; the terms by name.
        """
        lots, count = self.lots(images.shape[0]), len(real_gradients)
        if lots == 1:
            own, pulls, terms = self._judge_lot(images, fakes, boxes)
            return [*sums(real_gradients, own[:count]), *own[count:]], pulls, terms

        kinds = ("reconstruction", "swap", "crops")

        def compute(part: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            own, pulls, terms = self._judge_lot(part["image"], [part[kind] for kind in kinds], part["boxes"], lots)
            return [mean_terms({name: terms[name] for name in CRITICISM_TERMS}) / lots, *own], pulls

        batch = {"image": images, "boxes": boxes, **dict(zip(kinds, fakes))}
        patch_zeros = zeros(self.patch_discriminator.trainable_variables, self.step)
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

    def _judge_lot(self, images: tf.Tensor, fakes: list[tf.Tensor], boxes: tf.Tensor, lots: int = 1):
        """What `judge_generated` returns, of one lot; gradients are the lot's share of those of all."""
        *pictures, swap_crops = fakes
        with tf.GradientTape() as tape:
            tape.watch(pictures)
            fake_terms, logits = self._fake_terms(*pictures)
            objective = self.objective.total(("d",), self.objective.wanted(fake_terms), lots)
        own = gradients_or_zeros(tape, objective, [*self.discriminator.trainable_variables, *pictures])
        own, pulls = own[: -len(pictures)], own[-len(pictures) :]

        images, boxes, swap_crops = ops.after([*own, *pulls], images, boxes, swap_crops)
        with tf.GradientTape() as tape:
            tape.watch(swap_crops)
            patch_terms, patch_logits = self._patch_terms(self._real_crops(images, boxes), swap_crops)
            objective = self.objective.total(("dp",), self.objective.wanted(patch_terms), lots)
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
        """The factor `-(w_g / w_d) exp(-l)` of `judge_generated`, with three axes more: `[..., 1, 1, 1]`."""
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

    def plus_r1(self, gradients: list[tf.Tensor], images: tf.Tensor, boxes: tf.Tensor):
        """R1's terms, and the given gradients of `variables` with those of R1 added."""
        names = [name for name in R1_TERMS if self.objective.wants(name)]
        examples = images.shape[0]
        # What is differentiated twice cannot be recomputed; so the memory of one example is made to do.
        parts = examples if self.config.train.recompute else self.lots(examples)
        batch = {"image": images, "boxes": boxes}

        def compute(part: dict[str, tf.Tensor]) -> tuple[Terms, list[tf.Tensor]]:
            """One discriminator after the other."""

            def of_pictures() -> Terms:
                return self.objective.wanted({"d/r1": self._image_r1(part["image"])})

            def of_crops() -> Terms:
                return self.objective.wanted({"dp/r1": self._patch_r1(*tf.split(crops, 2, axis=1))})

            terms, own = self.objective.with_gradients(of_pictures, [], self.discriminator.trainable_variables, parts)
            crops = self._real_crops(*ops.after(own, part["image"], part["boxes"]))
            variables = self.patch_discriminator.trainable_variables
            patch_terms, patch_own = self.objective.with_gradients(of_crops, [], variables, parts)
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

        terms, summed = self.objective.lazily(
            self.step, names, images, together if parts == 1 else in_turn, lambda: gradients
        )
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
