"""Every random number of a training step, as a stateless function of (seed, step, place in the global batch).

Numbers are drawn for the whole global batch and each replica takes its own rows, so that any number of replicas, and
a run that was killed and resumed, see the same crops, masks and noise.
"""

from __future__ import annotations

from typing import Optional

import tensorflow as tf

from tcp_tf import masks
from tcp_tf.config import Config
from tcp_tf.generator import Generator

CROPS, MASKS, NOISE_RECONSTRUCTION, NOISE_SWAP, COLOURS, COLOUR_SHARES = range(6)


class Draws:
    """The draws of one step for the examples at `position` `[N]` of the global batch."""

    def __init__(self, config: Config, step: tf.Tensor, position: tf.Tensor):
        self.config, self.position = config, position
        self.seed = tf.stack([tf.constant(config.seed, tf.int64), tf.cast(step, tf.int64)])

    def _seed(self, purpose: int) -> tf.Tensor:
        return tf.random.experimental.stateless_fold_in(self.seed, purpose)

    def _uniform(self, purpose: int, *shape: int) -> tf.Tensor:
        everyone = tf.random.stateless_uniform([self.config.data.batch_size, *shape], self._seed(purpose))
        return tf.gather(everyone, self.position)

    def boxes(self, sets: int) -> tf.Tensor:
        """Crops for the patch discriminator, `[N, sets, K, 4]` = (top, left, height, width) as shares of the sides.

        Height and width are drawn independently, positions uniformly among those inside the picture; a mirrored
        crop has a negative width.
        """
        patches = self.config.patches
        uniform = self._uniform(CROPS, sets, patches.crops, 5)
        sizes = patches.min_scale + (patches.max_scale - patches.min_scale) * uniform[..., 0:2]
        corners = uniform[..., 2:4] * (1.0 - sizes)
        if not patches.mirror:
            return tf.concat([corners, sizes], axis=-1)
        mirrored = tf.cast(uniform[..., 4:5] < 0.5, tf.float32)
        left = corners[..., 1:2] + mirrored * sizes[..., 1:2]
        width = sizes[..., 1:2] * (1.0 - 2.0 * mirrored)
        return tf.concat([corners[..., 0:1], left, sizes[..., 0:1], width], axis=-1)

    def masks(self) -> tf.Tensor:
        """Random region masks, `[N, R, R, 1]`."""
        side, blend = self.config.data.resolution, self.config.blend
        return masks.random_masks(
            self._uniform(MASKS, masks.NUMBERS),
            side,
            side,
            kinds=blend.masks,
            min_area=blend.min_area,
            max_area=blend.max_area,
            complement_probability=blend.complement_probability,
        )

    def colour_maps(self, strength: float) -> tuple[tf.Tensor, tf.Tensor]:
        """Random affine maps of colours, for the first of each pair of neighbours.

        Each is a blend of the identity with a Gaussian matrix that keeps the variance of independent channels (it
        may invert, mix or mute them); the share of the Gaussian matrix is uniform in [0, strength].

        Returns:
            Matrices `[N/2, 3, 3]` and offsets `[N/2, 3]` for `ops.mix_colours`.
        """
        count = self.config.data.batch_size // 2
        rows = self.position[::2] // 2
        normal = tf.gather(tf.random.stateless_normal([count, 4, 3], self._seed(COLOURS)), rows)
        share = strength * tf.gather(tf.random.stateless_uniform([count, 1, 1], self._seed(COLOUR_SHARES)), rows)
        matrices = (1.0 - share) * tf.eye(3) + share * normal[:, :3] * 3**-0.5
        return matrices, share[:, 0] * normal[:, 3] * 0.3

    def noise(self, generator: Generator, purpose: int, pairs: bool = False) -> Optional[list[tf.Tensor]]:
        """The generator's noise maps for these examples, or for one of each pair of neighbours; None without noise."""
        if not self.config.model.noise:
            return None
        every = 2 if pairs else 1
        side = self.config.data.resolution
        drawn = generator.draw_noise(self.config.data.batch_size // every, side, side, self._seed(purpose))
        rows = self.position[::every] // every
        return [tf.gather(maps, rows) for maps in drawn]
