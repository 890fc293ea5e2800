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

CROPS, MASKS, NOISE_RECONSTRUCTION, NOISE_SWAP, COLOURS, COLOUR_SHARES, NOISE_COPY, CLUSTERS, CLUSTER_MAPS = range(9)


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

    def colour_maps(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Random maps of colours for these examples.

        A Gaussian matrix that keeps the variance of independent channels (it may invert, mix or mute them) and an
        offset for each place of the grid; the share is uniform in [`least_colours`, 1] times `content_colours`.

        Returns:
            Maps `[N, G, G, 4, 3]` and shares `[N]` for `ops.mix_colours`.
        """
        augment = self.config.augment
        shape = [self.config.data.batch_size, augment.colour_grid, augment.colour_grid, 4, 3]
        normal = tf.gather(tf.random.stateless_normal(shape, self._seed(COLOURS)), self.position)
        scale = tf.constant([3**-0.5] * 3 + [0.3])[:, None]
        return normal * scale, self._colour_shares()

    def colour_clusters(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Clusters of colours for these examples, and random maps for them.

        Centres are uniform among the pixels. Matrices are as in `colour_maps`; a cluster's new colour is Gaussian.

        Returns:
            Places `[N, K]`, maps `[N, K, 4, 3]` and shares `[N]` for `ops.mix_clusters`.
        """
        clusters = self.config.augment.colour_clusters
        shape = [self.config.data.batch_size, clusters, 4, 3]
        normal = tf.gather(tf.random.stateless_normal(shape, self._seed(CLUSTER_MAPS)), self.position)
        scale = tf.constant([3**-0.5] * 3 + [0.6])[:, None]
        return self._uniform(CLUSTERS, clusters), normal * scale, self._colour_shares()

    def _colour_shares(self) -> tf.Tensor:
        augment = self.config.augment
        least = augment.least_colours
        return augment.content_colours * (least + (1.0 - least) * self._uniform(COLOUR_SHARES))

    def noise(self, generator: Generator, purpose: int, every: int = 1) -> Optional[list[tf.Tensor]]:
        """The generator's noise maps for these examples, or for the first of every two; None without noise."""
        if not self.config.model.noise:
            return None
        side = self.config.data.resolution
        drawn = generator.draw_noise(self.config.data.batch_size // every, side, side, self._seed(purpose))
        rows = self.position[::every] // every
        return [tf.gather(maps, rows) for maps in drawn]
