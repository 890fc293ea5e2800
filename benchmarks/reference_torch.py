"""The same four networks in plain PyTorch, as one would write them from the papers: the other side of the comparison.

Written for this comparison from the Swapping Autoencoder's and StyleGAN2's descriptions (arXiv 2007.00653, appendix B;
arXiv 1912.04958). N C H W, scaled weights in every call, one module per layer. As the Swapping Autoencoder's published
code does, a modulated convolution runs as one grouped convolution with a copy of the kernel per picture; with
`grouped=False` as an ordinary convolution of the scaled input, which is the same function.

Parameters stand in the order of the official state dict, so that `load` can take the weights of our networks from
`tcp_tf.official_names.export`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SQRT2 = 2.0**0.5
ENCODER_TAPS, TAPS = (1.0, 2.0, 1.0), (1.0, 3.0, 3.0, 1.0)


def normalize(values: torch.Tensor) -> torch.Tensor:
    """Unit L2 norm along the channels, axis 1."""
    return values * torch.rsqrt(values.square().sum(dim=1, keepdim=True) + 1e-8)


class Filter(torch.autograd.Function):
    """Each channel's correlation with one kernel, or the adjoint of it, which is its gradient.

    Left to differentiate a convolution twice, PyTorch computes the kernel's gradient, too, which nobody asked for: for
    every channel a convolution with a whole map as its kernel. The Swapping Autoencoder's published code has an
    operation of its own here as well.
    """

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, kernel: torch.Tensor, like: Optional[torch.Tensor] = None) -> Any:
        """The filtered maps; with `like`, which are of the shape that was filtered, the adjoint."""
        ctx.save_for_backward(kernel, maps if like is None else None)
        channels = maps.shape[1]
        kernels = kernel.repeat(channels, 1, 1, 1)
        if like is None:
            return F.conv2d(maps, kernels, groups=channels)
        once, none = [1, 1], [0, 0]
        return torch.ops.aten.convolution_backward(
            maps, like, kernels, None, once, none, once, False, none, channels, [True, False, False]
        )[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        kernel, maps = ctx.saved_tensors
        return Filter.apply(gradient, kernel, maps), None, None


class Blur(nn.Module):
    """Separable filter, the same for every channel, after zero or reflect padding (before, after) of both axes."""

    kernel: torch.Tensor

    def __init__(self, taps: Sequence[float], padding: tuple[int, int], mode: str = "constant", gain: float = 1.0):
        super().__init__()
        line = torch.tensor(taps)
        kernel = torch.outer(line, line)
        self.register_buffer("kernel", (kernel / kernel.sum() * gain)[None, None], persistent=False)
        self.padding, self.mode = (*padding, *padding), mode

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return Filter.apply(F.pad(maps, self.padding, mode=self.mode), self.kernel)


class Conv(nn.Module):
    """Convolution with equalised learning rate, then bias, leaky ReLU and the gain sqrt(2) where asked."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        mode: str = "constant",
        bias: bool = True,
        activate: bool = True,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = (inputs * kernel * kernel) ** -0.5
        self.stride, self.padding, self.mode, self.activate = stride, padding, mode, activate

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        padding = self.padding
        if self.mode == "reflect":
            maps, padding = F.pad(maps, (padding,) * 4, mode="reflect"), 0
        maps = F.conv2d(maps, self.weight * self.scale, None, self.stride, padding)
        if self.bias is not None:
            maps = maps + self.bias[None, :, None, None]
        return F.leaky_relu(maps, 0.2) * SQRT2 if self.activate else maps


class Dense(nn.Module):
    """Matrix product with equalised learning rate, then bias, and leaky ReLU with the gain sqrt(2) where asked."""

    def __init__(self, inputs: int, outputs: int, activate: bool = False, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.activate = inputs**-0.5, activate

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        codes = F.linear(codes, self.weight * self.scale, self.bias)
        return F.leaky_relu(codes, 0.2) * SQRT2 if self.activate else codes


class Regions(NamedTuple):
    """Several styles for one picture: `styles` `[N, R, Cs]` and each one's share `[N, R, h, w]` at every resolution."""

    styles: torch.Tensor
    weights: Sequence[torch.Tensor]


Style = Union[torch.Tensor, Regions]  # a vector `[N, Cs]` or several


def factors_of(affine: Dense, style: Style, maps: torch.Tensor) -> torch.Tensor:
    """One factor per channel, and per position where styles differ: `[N, C, 1, 1]` or `[N, C, H, W]`."""
    if isinstance(style, torch.Tensor):
        return affine(style)[:, :, None, None]
    weights = next(each for each in style.weights if each.shape[2] == maps.shape[2])
    return torch.einsum("nrc,nrhw->nchw", affine(style.styles), weights)


class EncoderBlock(nn.Module):
    """Residual block that halves the resolution; the main path pads by reflection."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = Conv(inputs, inputs, 3, padding=1, mode="reflect")
        self.blur = Blur(ENCODER_TAPS, (2, 1), mode="reflect")
        self.conv2 = Conv(inputs, outputs, 3, stride=2)
        self.skip_blur = Blur(ENCODER_TAPS, (1, 0))
        self.skip = Conv(inputs, outputs, 1, stride=2, bias=False, activate=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        main = self.conv2(self.blur(self.conv1(maps)))
        return (main + self.skip(self.skip_blur(maps))) / SQRT2


class Encoder(nn.Module):
    """Pictures `[N, 3, H, W]` -> content `[N, Cc, h, w]` and style `[N, Cs]`, both of unit length.

    `widths` are those of the trunk, of the style head, and `style_dim` comes after them.
    """

    def __init__(self, widths: Sequence[int], downsamples: int, content_dim: int, style_dim: int):
        super().__init__()
        deep = widths[downsamples]
        self.from_rgb = Conv(3, widths[0], 1)
        self.blocks = nn.Sequential(*(EncoderBlock(widths[i], widths[i + 1]) for i in range(downsamples)))
        self.to_content = nn.Sequential(Conv(deep, deep, 1), Conv(deep, content_dim, 1, activate=False))
        self.to_style = nn.Sequential(
            Conv(deep, widths[downsamples + 1], 3, stride=2),
            Conv(widths[downsamples + 1], widths[downsamples + 2], 3, stride=2),
        )
        self.style = Dense(widths[downsamples + 2], style_dim)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.blocks(self.from_rgb(images))
        style = self.style(self.to_style(maps).mean(dim=(2, 3)))
        return normalize(self.to_content(maps)), normalize(style)


class ModulatedConv(nn.Module):
    """Convolution of an input scaled by the style; the style and, each by itself, the filters are normalised."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style_dim: int,
        up: bool = False,
        demodulate: bool = True,
        grouped: bool = True,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.modulation = Dense(style_dim, inputs, bias=1.0)
        self.blur = Blur(TAPS, (1, 1), gain=4.0) if up else None
        self.scale, self.demodulate, self.grouped = (inputs * kernel * kernel) ** -0.5, demodulate, grouped

    def forward(self, maps: torch.Tensor, style: Style) -> torch.Tensor:
        factors = factors_of(self.modulation, style, maps)  # N I 1 1 or N I H W
        weight = self.weight * self.scale  # O I k k
        if self.demodulate:
            factors = factors * torch.rsqrt(factors.square().mean(dim=1, keepdim=True) + 1e-8)
            weight = weight * torch.rsqrt(weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
        maps = maps * factors
        pictures, channels, height, width = maps.shape
        groups = pictures if self.grouped else 1
        if self.grouped:
            maps = maps.reshape(1, pictures * channels, height, width)
        if self.blur is not None:
            weight = weight.transpose(0, 1)  # I O k k
            maps = F.conv_transpose2d(maps, weight.repeat(groups, 1, 1, 1), stride=2, groups=groups)
        else:
            maps = F.conv2d(maps, weight.repeat(groups, 1, 1, 1), padding=weight.shape[-1] // 2, groups=groups)
        maps = maps.reshape(pictures, -1, *maps.shape[2:])
        return maps if self.blur is None else self.blur(maps)


class Noise(nn.Module):
    """Standard normal noise of one channel times a learned strength, which begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        pictures, _, height, width = maps.shape
        return maps + self.strength * torch.randn(pictures, 1, height, width, device=maps.device)


class Activation(nn.Module):
    """Bias, leaky ReLU and the gain sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(maps + self.bias[None, :, None, None], 0.2) * SQRT2


class StyledConv(nn.Module):
    """Modulated convolution, noise, activation."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool, grouped: bool, noise: bool):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, up=up, grouped=grouped)
        self.noise = Noise()
        self.activation = Activation(outputs)
        self.noisy = noise

    def forward(self, maps: torch.Tensor, style: Style) -> torch.Tensor:
        maps = self.conv(maps, style)
        return self.activation(self.noise(maps) if self.noisy else maps)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to three channels without demodulation, plus bias."""

    def __init__(self, inputs: int, style_dim: int, grouped: bool):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.conv = ModulatedConv(inputs, 3, 1, style_dim, demodulate=False, grouped=grouped)

    def forward(self, maps: torch.Tensor, style: Style) -> torch.Tensor:
        return self.conv(maps, style) + self.bias


class GeneratorBlock(nn.Module):
    """Residual block of two styled convolutions; with `up` it doubles the resolution."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool, grouped: bool, noise: bool):
        super().__init__()
        self.conv1 = StyledConv(inputs, outputs, style_dim, up, grouped, noise)
        self.conv2 = StyledConv(outputs, outputs, style_dim, False, grouped, noise)
        self.skip = None if inputs == outputs else Conv(inputs, outputs, 1, bias=up, activate=up)
        self.up = up

    def forward(self, maps: torch.Tensor, style: Style) -> torch.Tensor:
        main = self.conv2(self.conv1(maps, style), style)
        skip = maps if self.skip is None else self.skip(maps)
        if self.up:
            skip = F.interpolate(skip, scale_factor=2, mode="bilinear", align_corners=False)
        return (main + skip) / SQRT2


class Generator(nn.Module):
    """Content `[N, Cc, h, w]` and style `[N, Cs]` -> pictures `[N, 3, h 2^u, w 2^u]`.

    `widths` go from the content's resolution to the picture's.
    """

    def __init__(
        self,
        widths: Sequence[int],
        content_dim: int,
        style_dim: int,
        grouped: bool = True,
        noise: bool = True,
        head_blocks: int = 2,
    ):
        super().__init__()
        self.scale, self.shift = Dense(style_dim, content_dim), Dense(style_dim, content_dim)
        self.blocks = nn.ModuleList()
        inputs = content_dim
        for i in range(head_blocks):
            outputs = max(content_dim, round(widths[0] * (i + 1) / head_blocks))
            self.blocks.append(GeneratorBlock(inputs, outputs, style_dim, False, grouped, noise))
            inputs = outputs
        for outputs in widths[1:]:
            self.blocks.append(GeneratorBlock(inputs, outputs, style_dim, True, grouped, noise))
            inputs = outputs
        self.to_rgb = ToRGB(inputs, style_dim, grouped)

    def forward(self, content: torch.Tensor, style: Style) -> torch.Tensor:
        maps = normalize(content)
        if isinstance(style, torch.Tensor):
            style = normalize(style)
        maps = maps * factors_of(self.scale, style, maps) + factors_of(self.shift, style, maps)
        for block in self.blocks:
            maps = block(maps, style)
        return self.to_rgb(maps, style)


class CriticBlock(nn.Module):
    """Residual block, zero padding throughout; halves the resolution unless `down` is off."""

    def __init__(self, inputs: int, outputs: int, down: bool = True):
        super().__init__()
        stride, padding = (2, 0) if down else (1, 1)
        self.conv1 = Conv(inputs, inputs, 3, padding=1)
        self.blur = Blur(TAPS, (2, 2)) if down else nn.Identity()
        self.conv2 = Conv(inputs, outputs, 3, stride=stride, padding=padding)
        self.skip_blur = Blur(TAPS, (1, 1)) if down else nn.Identity()
        self.skip = Conv(inputs, outputs, 1, stride=stride, bias=False, activate=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        main = self.conv2(self.blur(self.conv1(maps)))
        return (main + self.skip(self.skip_blur(maps))) / SQRT2


class Discriminator(nn.Module):
    """Pictures `[N, 3, R, R]` -> logits `[N]`; `side` is that of the last maps."""

    def __init__(self, widths: Sequence[int], side: int):
        super().__init__()
        deep = widths[-1]
        self.from_rgb = Conv(3, widths[0], 1)
        self.blocks = nn.Sequential(*(CriticBlock(a, b) for a, b in zip(widths, widths[1:])))
        self.final = Conv(deep, deep, 3, padding=1)
        self.dense = nn.Sequential(Dense(deep * side * side, deep, activate=True), Dense(deep, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.final(self.blocks(self.from_rgb(images)))
        return self.dense(maps.flatten(1))[:, 0]


class PatchDiscriminator(nn.Module):
    """Crops of a reference and of a query picture -> logits, one per query crop."""

    def __init__(self, widths: Sequence[int], dense: Sequence[int]):
        super().__init__()
        deep = widths[-1]
        self.first = Conv(3, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(CriticBlock(a, b) for a, b in zip(widths, widths[1:])))
        self.widen = CriticBlock(deep, 2 * deep, down=False)
        self.last = Conv(2 * deep, deep, 3)
        sizes = [2 * deep * 4, *dense]
        layers = [Dense(a, b, activate=True) for a, b in zip(sizes, sizes[1:])]
        self.pairs = nn.Sequential(*layers, Dense(sizes[-1], 1))

    def features(self, crops: torch.Tensor) -> torch.Tensor:
        """`[N, K, 3, P, P]` -> `[N, K, F]`."""
        maps = self.last(self.widen(self.blocks(self.first(crops.flatten(0, 1)))))
        return maps.flatten(1).reshape(*crops.shape[:2], -1)

    def forward(self, reference: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Features `[N, K, F]` of both -> `[N, K]`; the reference is the mean over its crops."""
        mean = reference.mean(dim=1, keepdim=True).expand_as(query)
        return self.pairs(torch.cat([mean, query], dim=2))[..., 0]


class Networks(nn.Module):
    """All four, of the sizes that `sizes_of` reads off ours."""

    def __init__(self, sizes: Mapping[str, Any], grouped: bool = True):
        super().__init__()
        codes = sizes["content_dim"], sizes["style_dim"]
        self.encoder = Encoder(sizes["encoder"], sizes["downsamples"], *codes)
        self.generator = Generator(sizes["generator"], *codes, grouped=grouped, noise=sizes["noise"])
        self.discriminator = Discriminator(sizes["discriminator"], sizes["side"])
        self.patch_discriminator = PatchDiscriminator(sizes["patch_discriminator"], sizes["dense"])

    def masked_blend(self, images: torch.Tensor, looks: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Region-wise edit by mixed styles: `[N, 3, H, W]`, looks `[N, R, 3, H, W]`, masks `[N, R, H, W]` in [0, 1].

        Masks must not overlap.
        """
        content, own = self.encoder(images)
        _, styles = self.encoder(looks.flatten(0, 1))
        weights = [torch.cat([1 - masks.sum(dim=1, keepdim=True), masks], dim=1)]
        while weights[-1].shape[2] > content.shape[2]:
            weights.append(F.avg_pool2d(weights[-1], 2))
        every = torch.cat([own[:, None], styles.reshape(len(images), -1, own.shape[1])], dim=1)
        return self.generator(content, Regions(every, weights))

    def load(self, arrays: Sequence[np.ndarray]) -> None:
        """Takes the weights of the official state dict, in its order and layout, without its constants.

        Raises:
            ValueError: there are more or fewer, or one has another shape.
        """
        parameters = list(self.named_parameters())
        if len(parameters) != len(arrays):
            raise ValueError(f"the PyTorch networks have {len(parameters)} parameters, got {len(arrays)} arrays")
        for (name, parameter), array in zip(parameters, arrays):
            array = array[0] if array.ndim == 5 else array  # modulated kernels have an axis for the picture there
            if tuple(parameter.shape) != array.shape:
                raise ValueError(f"{name}: shape {tuple(parameter.shape)}, got {array.shape}")
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(np.array(array)))


def crops(images: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear crops: `[N, 3, H, W]`, boxes `[N, K, 4]` (top, left, height, width as shares) -> `[N, K, 3, P, P]`."""
    steps = (torch.arange(size, device=images.device) + 0.5) / size
    rows = (boxes[..., 0:1] + boxes[..., 2:3] * steps) * 2 - 1  # N K P
    columns = (boxes[..., 1:2] + boxes[..., 3:4] * steps) * 2 - 1
    count = boxes.shape[1]
    grid = torch.stack(torch.broadcast_tensors(columns[:, :, None, :], rows[:, :, :, None]), dim=-1)  # N K P P 2
    flat = F.grid_sample(
        images.repeat_interleave(count, dim=0), grid.flatten(0, 1), padding_mode="border", align_corners=False
    )
    return flat.reshape(len(images), count, *flat.shape[1:])


def swap_pairs(codes: torch.Tensor) -> torch.Tensor:
    """Exchanges neighbours along the first axis."""
    return codes.reshape(-1, 2, *codes.shape[1:]).flip(1).reshape(codes.shape)


class Objectives:
    """The Swapping Autoencoder's three training steps: discriminators, encoder and generator, and lazy R1."""

    def __init__(self, networks: Networks, weights: Mapping[str, float], patch_size: int, gammas: tuple[float, float]):
        self.networks, self.weights, self.patch_size, self.gammas = networks, weights, patch_size, gammas

    def fakes(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructions of every first neighbour, and swaps of all."""
        content, style = self.networks.encoder(images)
        reconstruction = self.networks.generator(content[::2], style[::2])
        return reconstruction, self.networks.generator(content, swap_pairs(style))

    def discriminators(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """The loss of both discriminators; `boxes` `[N, 3, K, 4]` are those of reference, query and swap crops."""
        networks, weights = self.networks, self.weights
        with torch.no_grad():
            reconstruction, swap = self.fakes(images)
            fake_crops = crops(swap, boxes[:, 2], self.patch_size)
            reference, query = (crops(images, boxes[:, i], self.patch_size) for i in (0, 1))
        loss = weights["d/gan_real"] * F.softplus(-networks.discriminator(images)).mean()
        loss = loss + weights["d/gan_rec"] * F.softplus(networks.discriminator(reconstruction)).mean()
        loss = loss + weights["d/gan_swap"] * F.softplus(networks.discriminator(swap)).mean()
        features = [networks.patch_discriminator.features(each) for each in (reference, query, fake_crops)]
        real = networks.patch_discriminator(features[0], features[1])
        fake = networks.patch_discriminator(swap_pairs(features[0]), features[2])
        loss = loss + weights["dp/real"] * F.softplus(-real).mean()
        return loss + weights["dp/fake"] * F.softplus(fake).mean()

    def generator(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """The loss of encoder and generator."""
        networks, weights = self.networks, self.weights
        reconstruction, swap = self.fakes(images)
        loss = weights["g/l1"] * (reconstruction - images[::2]).abs().mean()
        loss = loss + weights["g/gan_rec"] * F.softplus(-networks.discriminator(reconstruction)).mean()
        loss = loss + weights["g/gan_swap"] * F.softplus(-networks.discriminator(swap)).mean()
        with torch.no_grad():
            reference = crops(images, boxes[:, 0], self.patch_size)
            features = swap_pairs(networks.patch_discriminator.features(reference))
        query = networks.patch_discriminator.features(crops(swap, boxes[:, 2], self.patch_size))
        return loss + weights["g/patch_gan"] * F.softplus(-networks.patch_discriminator(features, query)).mean()

    def r1(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Both gradient penalties, not yet times their interval."""
        # `forward` itself, since what torch.compile makes of a module has no second derivative.
        critic, patch_critic = self.networks.discriminator, self.networks.patch_discriminator
        images = images.detach().requires_grad_()
        total = critic.forward(images).sum()
        (gradient,) = torch.autograd.grad(total, images, create_graph=True)
        loss = self.gammas[0] / 2 * gradient.square().sum(dim=(1, 2, 3)).mean()
        pair = [crops(images.detach(), boxes[:, i], self.patch_size).requires_grad_() for i in (0, 1)]
        features = [PatchDiscriminator.features(patch_critic, each) for each in pair]
        gradients = torch.autograd.grad(patch_critic.forward(*features).sum(), pair, create_graph=True)
        penalties = sum(each.square().sum(dim=(1, 2, 3, 4)).mean() for each in gradients)
        return loss + self.gammas[1] / 4 * penalties
