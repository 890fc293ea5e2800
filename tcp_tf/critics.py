"""Both discriminators in a training: what they make of pictures, their gradients, R1, and in how many lots."""

from __future__ import annotations

import tensorflow as tf

from tcp_tf import losses, ops, target
from tcp_tf.config import Config
from tcp_tf.discriminators import Discriminator, PatchDiscriminator
from tcp_tf.gradients import of_maps_alone
from tcp_tf.objective import R1_TERMS, REAL, Objective, gradients_or_zeros
from tcp_tf.parts import Terms, plus_sums_over_parts, zeros

# Numbers of a discriminator's widest maps, at most, that it keeps at a time on a CPU. With half of that a step takes
# some 5 % longer, since each lot makes its kernels anew; with more it is no faster.
LOT = {"float32": 2**24, "bfloat16": 2**25}


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
        """The image discriminator's term of real pictures, and its gradients of that discriminator's variables.

        Neither where they are judged together with the generated ones, see `together`.
        """
        if self.together(images.shape[0]):
            return {}, []
        gradients, (logits,) = self._judge_pictures([], images, {REAL: images.shape[0]})
        return {REAL: losses.judged_real(logits)}, gradients

    def judge_generated(
        self, images: tf.Tensor, fakes: list[tf.Tensor], boxes: tf.Tensor, real_gradients: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], Terms]:
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
            Gradients of `variables`; the gradient of the generator's adversarial terms with respect to each of
            `fakes`; the terms by name, of which those without a weight say nothing.
        """
        *pictures, crops = fakes
        counts = dict(zip(("d/gan_rec", "d/gan_swap"), (each.shape[0] for each in pictures)))
        if self.together(images.shape[0]):
            pictures, counts = [images, *pictures], {REAL: images.shape[0], **counts}
        sizes = list(counts.values())
        gradients, (logits, pull) = self._judge_pictures(
            real_gradients, tf.concat(pictures, axis=0), counts, pulled=True
        )
        images, boxes, crops = ops.after([*gradients, pull], images, boxes, crops)
        patch_gradients, (patch_real, patch_fake, patch_pull) = self._judge_crops(images, boxes, crops)
        *real, rec, swap = tf.split(logits, sizes)
        terms = {
            "g/gan_rec": losses.judged_real(rec),
            "g/gan_swap": losses.judged_real(swap),
            "d/gan_rec": losses.judged_fake(rec),
            "d/gan_swap": losses.judged_fake(swap),
            "g/patch_gan": losses.judged_real(patch_fake),
            "dp/real": losses.judged_real(patch_real),
            "dp/fake": losses.judged_fake(patch_fake),
        }
        if real:
            terms[REAL] = losses.judged_real(*real)
        pairs = [("g/gan_rec", "d/gan_rec"), ("g/gan_swap", "d/gan_swap"), ("g/patch_gan", "dp/fake")]
        every = zip([*tf.split(pull, sizes)[-2:], patch_pull], pairs, [rec, swap, patch_fake])
        pulls = [pull * self._turn(*pair, values) for pull, pair, values in every]
        return [*gradients, *patch_gradients], pulls, terms

    def together(self, examples: int) -> bool:
        """Whether the image discriminator works on so many real pictures and on those made of them at the same time.

        On a CPU, where that is one lot: small networks take less time for it.
        """
        generated = examples // 2 + examples
        return not (target.gpu() or target.xla()) and self.picture_lots(examples + generated) == 1

    def _judge_pictures(
        self, start: list[tf.Tensor], pictures: tf.Tensor, counts: dict[str, int], pulled: bool = False
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The gradients of the image discriminator's variables, then its logits, `[N]`.

        Args:
            start: what the gradients are added to; empty for nothing.
            pictures: `[N, R, R, 3]`, as many of each term as `counts` says, one term after the other.
            pulled: after the logits come gradients of the pictures.
        """
        variables, (examples, *_) = self.discriminator.trainable_variables, pictures.shape

        def compute(part: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            given = [part["pictures"]] if pulled else []
            with tf.GradientTape() as tape:
                tape.watch(given)
                logits = self.discriminator(part["pictures"])
                objective = tf.reduce_sum(part["shares"] * losses.judged_fake(part["signs"] * logits))
            gradients = gradients_or_zeros(tape, objective, [*variables, *given])
            return gradients[: len(variables)], [logits, *gradients[len(variables) :]]

        like = [tf.TensorSpec([examples]), *([pictures] if pulled else [])]
        if not self.objective.wants(*counts):
            return start or zeros(variables, self.step), zeros(like, self.step)
        count = self.picture_lots(examples)
        if count > 1 and not start:
            start = zeros(variables, self.step)
        # A real picture is judged as a generated one with the opposite logit would be.
        signs = [-1.0 if name == REAL else 1.0 for name, many in counts.items() for _ in range(many)]
        batch = {"pictures": pictures, "shares": self.objective.shares(counts), "signs": tf.constant(signs)}
        return plus_sums_over_parts(start, count, compute, batch, like)

    def _judge_crops(
        self, images: tf.Tensor, boxes: tf.Tensor, crops: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Gradients of the patch discriminator's variables; its logits of real and of generated crops, `[N, K]` each,
        and the gradient of the generated ones.
        """
        variables, (examples, each, *_) = self.patch_discriminator.trainable_variables, crops.shape

        def compute(part: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            with tf.GradientTape() as tape:
                tape.watch(part["crops"])
                real, fake = self._patch_logits(self._real_crops(part["images"], part["boxes"]), part["crops"])
                values = part["real"] * losses.judged_real(real) + part["fake"] * losses.judged_fake(fake)
                objective = tf.reduce_sum(values)
            *own, pull = gradients_or_zeros(tape, objective, [*variables, part["crops"]])
            return own, [real, fake, pull]

        like = [tf.TensorSpec([examples, each]), tf.TensorSpec([examples, each]), crops]
        if not self.objective.wants("dp/real", "dp/fake"):
            return zeros(variables, self.step), zeros(like, self.step)
        count = self.crop_lots(examples)
        batch = {
            "images": images,
            "boxes": boxes,
            "crops": crops,
            "real": self.objective.shares({"dp/real": examples}),
            "fake": self.objective.shares({"dp/fake": examples}),
        }
        start = zeros(variables, self.step) if count > 1 else []
        return plus_sums_over_parts(start, count, compute, batch, like)

    def picture_lots(self, pictures: int) -> int:
        """In how many equal lots the image discriminator works on so many pictures, see `lots`."""
        return lots(pictures, self._numbers_of_picture, self.discriminator.compute_dtype)

    def crop_lots(self, examples: int) -> int:
        """In how many equal lots, whole pairs of neighbours each, the patch discriminator works on so many examples."""
        return lots(examples // 2, 2 * 3 * self._numbers_of_crops, self.discriminator.compute_dtype)

    @property
    def _numbers_of_picture(self) -> int:
        """In the image discriminator's widest maps."""
        return self.discriminator.resolution**2 * self.discriminator.widths[0]

    @property
    def _numbers_of_crops(self) -> int:
        """In the patch discriminator's widest maps of one set of crops."""
        return self.config.patches.crops * self.patch_discriminator.patch_size**2 * self.patch_discriminator.widths[0]

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

    def _patch_logits(self, real_crops: tf.Tensor, swap_crops: tf.Tensor) -> list[tf.Tensor]:
        """Of real crops, `[N, 2K, P, P, 3]`, and of those of swaps, `[N, K, P, P, 3]`, each beside its reference."""
        features = self.patch_discriminator.features(tf.concat([real_crops, swap_crops], axis=1))
        reference, query, fake = tf.split(features, 3, axis=1)
        logits = self.patch_discriminator.pair(
            tf.concat([reference, ops.swap_pairs(reference)], axis=0), tf.concat([query, fake], axis=0)
        )
        return tf.split(logits, 2)

    def plus_r1(self, gradients: list[tf.Tensor], images: tf.Tensor, boxes: tf.Tensor) -> tuple[Terms, list[tf.Tensor]]:
        """R1's terms, and the given gradients of `variables` with those of R1 added."""
        names = [name for name in R1_TERMS if self.objective.wants(name)]
        examples = images.shape[0]
        # What is differentiated twice takes more than twice the memory, and cannot be recomputed.
        numbers = 2 * max(self._numbers_of_picture, 2 * self._numbers_of_crops)
        count = examples if self.config.train.recompute else lots(examples, numbers, self.discriminator.compute_dtype)

        def compute(part: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            """One discriminator after the other."""

            def of_pictures() -> Terms:
                return self.objective.wanted({"d/r1": self._image_r1(part["images"])})

            def of_crops() -> Terms:
                return self.objective.wanted({"dp/r1": self._patch_r1(*tf.split(crops, 2, axis=1))})

            terms, own = self.objective.with_gradients(of_pictures, [], self.discriminator.trainable_variables, count)
            crops = self._real_crops(*ops.after(own, part["images"], part["boxes"]))
            variables = self.patch_discriminator.trainable_variables
            patch_terms, patch_own = self.objective.with_gradients(of_crops, [], variables, count)
            terms.update(patch_terms)
            return [*own, *patch_own], [terms[name] for name in names]

        def due() -> tuple[Terms, list[tf.Tensor]]:
            like = [tf.TensorSpec([examples]) for _ in names]
            summed, values = plus_sums_over_parts(gradients, count, compute, {"images": images, "boxes": boxes}, like)
            return dict(zip(names, values)), summed

        terms, summed = self.objective.lazily(self.step, names, images, due, lambda: gradients)
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


def lots(examples: int, numbers: int, dtype: str) -> int:
    """In how many equal lots a discriminator works on so many examples, to keep its activations of one lot only.

    On a CPU the least number with which the widest maps of a lot, so many numbers of each example, are at most `LOT`;
    one example a lot where its own are more.
    """
    at_once = examples if target.gpu() or target.xla() else max(1, LOT[dtype] // numbers)
    return next(count for count in range(1, examples + 1) if examples % count == 0 and examples <= count * at_once)
