"""The smallest blocks with weights, with the equalised learning rate of progressive GANs (arXiv 1710.10196).

Every weight is drawn from N(0, 1) and multiplied by 1/sqrt(fan_in) when used. The activation is
`leaky_relu(x + bias, 0.2) * sqrt(2)`; this factor, and others on a layer's result, are in the (small) weights and
biases, since leaky ReLU is positively homogeneous, so that no pass over the activations is spent on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Callable, NamedTuple, Optional, Union

import keras
import tensorflow as tf

from tcp_tf import gradients, ops, winograd

SLOPE = 0.2
BRANCH_GAIN = 2.0**-0.5  # of both branches of a residual block, whose sum then has the variance of one


class RegionStyles(NamedTuple):
    """A style per region instead of one per picture.

    `styles` is `[N, R, Cs]`; `weights[l]` is `[N, H / 2^l, W / 2^l, R]`, the share of each region at each position of
    level `l`, summing to one over R (`blending.region_weights` and `ops.pyramid` make them).
    """

    styles: tf.Tensor
    weights: Sequence[tf.Tensor]


Style = Union[tf.Tensor, RegionStyles]


def attach(owner: keras.layers.Layer, parts: Sequence[keras.layers.Layer]) -> list[keras.layers.Layer]:
    """Makes every part an attribute of its owner, under the part's own name, and returns the parts as a list.

    Keras 3 finds layers in a list when it collects weights, but `tf.train.Checkpoint` does not: it would save and
    restore a model without them, and say nothing.
    """
    for part in parts:
        setattr(owner, part.name, part)
    return list(parts)


def forgetful(block: Callable, recompute: bool) -> Callable:
    """`block`, of tensors alone, or where asked the same that keeps no activation for its gradient.

    They are computed once more when the gradient is (arXiv 1604.06174). Such a gradient cannot itself be
    differentiated, as R1 does.
    """
    return tf.recompute_grad(block) if recompute else block


_folded = False


@contextlib.contextmanager
def folded() -> Iterator[None]:
    """Layers made in here are folded, see `WithKernel`."""
    global _folded
    before, _folded = _folded, True
    try:
        yield
    finally:
        _folded = before


def fill_folded(network: keras.Model, trained: keras.Model) -> None:
    """Gives a network of folded layers the weights of the same network as it is trained."""
    for own, source in zip(network.weights, trained.weights):
        own.assign(tf.cast(tf.convert_to_tensor(source), own.dtype))
    for layer, source in zip(network._flatten_layers(), trained._flatten_layers()):
        if isinstance(layer, WithKernel):
            layer.kernel.assign(tf.cast(source.used_kernel(), layer.kernel.dtype))


class WithKernel(keras.layers.Layer):
    """A layer that makes its kernel out of a trained variable in every call; folded, for use alone, it keeps it made.

    The folded layer's variable has another name, so that none is taken for the other, and is zero at first.
    """

    kernel: tf.Variable

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.folded = _folded

    def add_kernel(self, *shape: int) -> None:
        """Makes the variable."""
        if self.folded:
            self.kernel = self.add_weight(name="folded_kernel", shape=shape, initializer="zeros")
        else:
            drawn = keras.initializers.RandomNormal(0.0, 1.0)
            self.kernel = self.add_weight(name="kernel", shape=shape, initializer=drawn)

    def used_kernel(self) -> tf.Tensor:
        """What the layer convolves with, of the variable's shape."""
        kernel = tf.convert_to_tensor(self.kernel)
        return kernel if self.folded else self.scaled(kernel)

    def scaled(self, kernel: tf.Tensor) -> tf.Tensor:
        """What is made of the trained variable."""
        raise NotImplementedError


class Conv(WithKernel):
    """Convolution with equalised learning rate, then bias and leaky ReLU where asked, times `gain`.

    `[N, H, W, inputs]` -> `[N, (H + pads - kernel) // stride + 1, ..., filters]`. With `signs_only` no layer that
    follows keeps the result for its gradient, see `gradients.leaky_relu`.
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: ops.Padding = (0, 0),
        reflect: bool = False,
        bias: bool = True,
        activate: bool = True,
        gain: float = 1.0,
        signs_only: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.stride, self.padding, self.reflect, self.signs_only = stride, padding, reflect, signs_only
        self.activate, self.output_gain = activate, gain * (ops.SQRT2 if activate else 1.0)
        self.gain = self.output_gain * (inputs * kernel * kernel) ** -0.5
        self.add_kernel(kernel, kernel, inputs, filters)
        self.bias = self.add_weight(name="bias", shape=(filters,), initializer="zeros") if bias else None
        self.built = True

    def scaled(self, kernel: tf.Tensor) -> tf.Tensor:
        return kernel * self.gain

    def call(self, images: tf.Tensor) -> tf.Tensor:
        if not self.folded and self.kernel.shape.num_elements() > ops.LARGE:
            images, kernel = images * self.gain, tf.convert_to_tensor(self.kernel)
        else:
            kernel = self.used_kernel()
        padding = self.padding
        if self.reflect:
            images, padding = reflected(images, padding, self.trainable), (0, 0)
        if self.stride == 1:
            maps = convolve(images, kernel, padding, self.trainable)
        else:
            down = gradients.conv_down if self.trainable else ops.conv_down
            maps = down(ops.pad(images, padding), kernel)
        return bias_and_activate(
            maps, self.bias, self.output_gain, self.activate, self.trainable, signs_only=self.signs_only
        )


class Dense(keras.layers.Layer):
    """Matrix product, then bias and leaky ReLU where asked: `[..., inputs]` -> `[..., units]`."""

    def __init__(self, inputs: int, units: int, *, activate: bool = False, bias_init: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.activate, self.output_gain = activate, ops.SQRT2 if activate else 1.0
        self.gain = self.output_gain * inputs**-0.5
        self.kernel = self.add_weight(
            name="kernel", shape=(inputs, units), initializer=keras.initializers.RandomNormal(0.0, 1.0)
        )
        self.bias = self.add_weight(name="bias", shape=(units,), initializer=keras.initializers.Constant(bias_init))
        self.built = True

    def call(self, codes: tf.Tensor) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        scaled = codes * self.gain  # which are fewer than weights
        # One product: with more axes, `tf.matmul` would read the kernel anew for each place on the first ones.
        product = tf.matmul(scaled, kernel) if len(codes.shape) == 2 else tf.tensordot(scaled, kernel, 1)
        return bias_and_activate(product, self.bias, self.output_gain, self.activate, self.trainable)


class Modulation(keras.layers.Layer):
    """Affine map from the style to one factor per channel, at every position of a feature map.

    Style `[N, Cs]` gives `[N, 1, 1, C]`. A style map `[N, h, w, Cs]` gives `[N, H, W, C]`, resized bilinearly to the
    feature map (an affine map commutes with interpolation, so the cheap order is taken: first affine, then resize).
    `RegionStyles` gives `[N, H, W, C]`, each region's factors mixed by its share at each position.
    `level` says which resolution the feature map has: the image's side / 2^level. With `unit`, the factors at a
    position have unit mean square.
    """

    def __init__(
        self, style_dim: int, channels: int, *, level: int, bias_init: float = 0.0, unit: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        self.level, self.unit = level, unit
        self.affine = Dense(style_dim, channels, bias_init=bias_init, name="affine")
        self.built = True

    def call(self, style: Style, like: tf.Tensor) -> tf.Tensor:
        if isinstance(style, RegionStyles):
            weights, each = style.weights[self.level], self.affine(style.styles)
            return tf.einsum("nhwr,nrc->nhwc", ops.unit_mixture(weights, each) if self.unit else weights, each)
        factors = self.affine(style)
        if len(factors.shape) == 2:
            factors = factors[:, None, None, :]
        else:
            factors = ops.resize_bilinear(factors, *ops.spatial_shape(like))
        return ops.normalize_mean_square(factors) if self.unit else factors


class ModulatedConv(WithKernel):
    """Convolution whose input channels are scaled by the style, as an ordinary convolution of the scaled input.

    With `demodulate`, the factors have unit mean square and every filter unit norm (`ops.demodulated`). With `up`, a
    transposed convolution of stride 2 and the [1, 3, 3, 1] filter double the resolution. A network that is only asked
    scales the kernel instead of a single picture's maps, where it has fewer numbers.
    `[N, H, W, inputs]` -> `[N, H, W, filters]`, or `[N, 2H, 2W, filters]` with `up`.
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        kernel: int,
        style_dim: int,
        *,
        level: int,
        up: bool = False,
        demodulate: bool = True,
        gain: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.up, self.demodulate, self.output_gain = up, demodulate, gain
        self.gain = (inputs * kernel * kernel) ** -0.5
        self.padding = (kernel // 2, kernel // 2)
        self.modulation = Modulation(style_dim, inputs, level=level, bias_init=1.0, unit=demodulate, name="modulation")
        # A transposed convolution takes its kernel as [k, k, filters, inputs].
        shape = (kernel, kernel, filters, inputs) if up else (kernel, kernel, inputs, filters)
        self.add_kernel(*shape)
        self.built = True

    def scaled(self, kernel: tf.Tensor) -> tf.Tensor:
        if self.demodulate:
            return ops.demodulated(kernel, 2 if self.up else 3, self.gain, self.output_gain)
        return kernel * (self.gain * self.output_gain)

    def call(self, maps: tf.Tensor, style: Style) -> tf.Tensor:
        factors, kernel = self.modulation(style, maps), self.used_kernel()
        if self.trainable:
            return gradients.remade(gradients.scaled, self._convolved, maps, factors, kernel=kernel)
        if factors.shape[1:3] == (1, 1):
            if factors.shape[0] == 1 and kernel.shape.num_elements() < (maps.shape.num_elements() or 0):
                return self._convolved(maps, kernel * (factors if self.up else tf.reshape(factors, [1, 1, -1, 1])))
            if kernel.shape[:2] == (1, 1):
                return ops.conv1x1_each(maps, kernel[0, 0] * factors[:, 0, 0, :, None])
        return self._convolved(maps * factors, kernel)

    def _convolved(self, maps: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if self.up:
            # To even sides, oneDNN's transposed convolution takes up to 40 % less time than to odd ones. The last line
            # and column are zeros then, which the filter need not add.
            height, width = (2 * side + kernel.shape[0] - 1 for side in ops.spatial_shape(maps))
            up = gradients.conv_up if self.trainable else ops.conv_up
            return blurred(up(maps, kernel, height, width), [1, 3, 3, 1], (1, 0), self.trainable, gain=4.0)
        return convolve(maps, kernel, self.padding, self.trainable)


class StyledConv(keras.layers.Layer):
    """Modulated convolution, noise of one channel times a learned scalar (initially 0), bias, leaky ReLU, `gain`.

    `signs_only` as in `Conv`.
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        style_dim: int,
        *,
        level: int,
        up: bool = False,
        gain: float = 1.0,
        signs_only: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.output_gain, self.signs_only = ops.SQRT2 * gain, signs_only
        self.conv = ModulatedConv(inputs, filters, 3, style_dim, level=level, up=up, gain=self.output_gain, name="conv")
        self.noise_strength = self.add_weight(name="noise_strength", shape=(1,), initializer="zeros")
        self.bias = self.add_weight(name="bias", shape=(filters,), initializer="zeros")
        self.built = True

    def call(self, maps: tf.Tensor, style: Style, noise: Optional[tf.Tensor] = None) -> tf.Tensor:
        maps, bias = self.conv(maps, style), self.bias
        if noise is not None:
            noise = noise * (tf.convert_to_tensor(self.noise_strength) * self.output_gain)
            if not self.trainable and noise.shape[0] == 1 != maps.shape[0]:  # one pass over all pictures for both
                noise, bias = noise + tf.convert_to_tensor(bias) * self.output_gain, None
            maps += noise
        return bias_and_activate(maps, bias, self.output_gain, True, self.trainable, signs_only=self.signs_only)


def reflected(maps: tf.Tensor, padding: ops.Padding, trained: bool) -> tf.Tensor:
    """`ops.reflect`, where it is differentiated with the gradient that is fastest here."""
    return (gradients if trained else ops).reflect(maps, padding)


def blurred(
    maps: tf.Tensor, taps: Sequence[float], padding: ops.Padding, trained: bool, gain: float = 1.0, stride: int = 1
) -> tf.Tensor:
    """`ops.blur`, where it is differentiated with the gradient that is fastest here."""
    return (gradients.blur if trained else ops.blur)(maps, taps, padding, gain, stride)


def upsampled(maps: tf.Tensor, trained: bool) -> tf.Tensor:
    """`ops.upsample_bilinear`, where it is differentiated with the gradient that keeps nothing."""
    return (gradients if trained else ops).upsample_bilinear(maps)


def convolve(maps: tf.Tensor, kernel: tf.Tensor, padding: ops.Padding, trained: bool) -> tf.Tensor:
    """Convolution of stride 1, as `ops.conv`, by the way that is fastest here."""
    return (gradients.conv if trained else winograd.fastest_conv)(maps, kernel, padding[0])


def bias_and_activate(
    values: tf.Tensor,
    bias: Optional[tf.Variable],
    gain: float,
    activate: bool,
    trained: bool = False,
    signs_only: bool = False,
) -> tf.Tensor:
    """`values + gain * bias`, leaky ReLU of it where asked: `values` come with the gain."""
    if bias is not None:
        add = gradients.bias_add if trained else tf.nn.bias_add
        values = add(values, tf.convert_to_tensor(bias) * gain)
    if not activate:
        return values
    return gradients.leaky_relu(values, SLOPE, signs_only) if trained else tf.nn.leaky_relu(values, SLOPE)
