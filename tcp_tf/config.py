"""Every knob of an experiment: type, default, unit, range and the combinations that cannot work.

A YAML file of `configs/` lists only what differs from the defaults below, and the defaults are the official Swapping
Autoencoder's settings for LSUN churches at 256 px with TCP's two losses added. Checking is strict: a key that does
not exist, a value of the wrong type, a number out of range or an impossible combination is refused in one line that
begins with the key's dotted path, before TensorFlow is imported.

    config = load("configs/quickstart.yaml", ["loss.r1_gamma=2"])
    config.loss.g.l1, config.loss.weights["g/l1"]

`python -m tcp_tf.config` prints the table of all keys.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

Precision = Literal["float32", "mixed_bfloat16"]  # Keras's policies
PRECISIONS = get_args(Precision)
MASK_KINDS = ("rectangle", "ellipse", "brush", "half_plane")
# The official code's Adam, without its lr * 16/17 correction: here R1 is part of the discriminators' one step.
ADAM_ARGS = {"beta_1": 0.0, "beta_2": 0.99, "epsilon": 1e-8}
SMALLEST_STYLE_GRID = 7  # two VALID 3x3 convolutions of stride 2 take 7 positions to 3 and to 1
DEEPEST = 20  # groups within groups of a file


class ConfigError(ValueError):
    """A configuration that cannot be used; one line per problem, each beginning with the key's dotted path."""


def knob(default: Any, description: str, unit: str = "", **limits: Any) -> Any:
    """A field with its documentation; `limits` are pydantic's ge, gt, le and lt."""
    if isinstance(default, (list, dict)):
        fresh = default.copy
        return Field(default_factory=fresh, description=description, json_schema_extra={"unit": unit}, **limits)
    return Field(default=default, description=description, json_schema_extra={"unit": unit}, **limits)


class Section(BaseModel):
    """Base of every group of keys: strict types, no unknown keys, no NaN or infinity, read-only."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the pictures come from and how they are brought to size."""

    source: Optional[str] = knob("scenes", "`scenes`, `folder:PATH` or `tfds:NAME`; null where `sources` is set")
    sources: Optional[list[str]] = knob(None, "several data sets joined into one, for cross-domain training")
    data_dir: Optional[str] = knob(None, "directory of TFDS data sets; null = TFDS's own default", "path")
    resolution: int = knob(256, "side of the square training pictures; a multiple of 2^model.downsamples", "px", ge=16)
    preprocess: Literal["resize", "short_side_and_crop"] = knob(
        "short_side_and_crop", "`resize` to a square (may distort), or scale the short side and crop at random"
    )
    load_size: Optional[int] = knob(None, "short side before the crop; null = resolution", "px", ge=16)
    flip: bool = knob(True, "random horizontal flip")
    batch_size: int = knob(16, "pictures per step on all replicas together; even: neighbours swap", "images", ge=2)
    validation_fraction: float = knob(0.05, "part of a folder held out for evaluation", "share", gt=0, le=0.5)
    workers: int = knob(0, "parallel readers; 0 = one per CPU core", "threads", ge=0)
    cache: Literal["none", "memory"] = knob("none", "keep the decoded pictures in memory after the first pass")

    @model_validator(mode="before")
    @classmethod
    def _sources_replace_the_default_source(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("sources") is not None and "source" not in values:
            return {**values, "source": None}
        return values

    @property
    def all_sources(self) -> list[str]:
        """The data sets to read, one or several: `sources`, or `source` alone."""
        return list(self.sources) if self.sources else [str(self.source)]

    @property
    def short_side(self) -> int:
        """Short side in pixels to which a picture is scaled before the crop."""
        return self.resolution if self.load_size is None else self.load_size


class ModelConfig(Section):
    """Sizes of the four networks."""

    channels: int = knob(32, "the encoder's width at full resolution; all others follow", "channels", ge=1)
    max_channels: int = knob(512, "bound on the widths of generator and image discriminator", "channels", ge=1)
    downsamples: int = knob(4, "halvings between the picture and the content code", ge=1, le=8)
    content_dim: int = knob(8, "channels of the content code", "channels", ge=1)
    style_dim: int = knob(2048, "length of the style code", "channels", ge=1)
    patch_size: int = knob(128, "side of the crops that the patch discriminator sees; a power of two", "px", ge=16)
    encoder_capacity: float = knob(1.0, "factor on the encoder's widths", gt=0)
    generator_capacity: float = knob(1.0, "factor on the generator's widths", gt=0)
    discriminator_capacity: float = knob(1.0, "factor on the image discriminator's widths", gt=0)
    patch_capacity: float = knob(1.0, "factor on the patch discriminator's widths", gt=0)
    noise: bool = knob(True, "add learned amounts of noise in the generator's layers")


class PatchesConfig(Section):
    """The crops that the patch co-occurrence discriminator compares."""

    crops: int = knob(8, "crops per picture", "crops", ge=1)
    min_scale: float = knob(0.125, "smallest crop side as a share of the picture's side", "share", gt=0, le=1)
    max_scale: float = knob(0.25, "largest crop side as a share of the picture's side", "share", gt=0, le=1)
    mirror: bool = knob(True, "mirror crops at random")


class CodeConsistencyWeights(Section):
    """The two terms of code consistency; their quotient is the lambda of the paper."""

    content: float = knob(1.0, "distance between the content codes of the swap and of its content picture", ge=0)
    style: float = knob(16.0, "distance between the style codes of the swap and of its style picture (lambda)", ge=0)


class GeneratorWeights(Section):
    """What encoder and generator are trained on."""

    l1: float = knob(1.0, "L1 between reconstruction and picture", ge=0)
    gan_rec: float = knob(0.5, "reconstructions must pass the image discriminator", ge=0)
    gan_swap: float = knob(1.0, "swaps must pass the image discriminator", ge=0)
    patch_gan: float = knob(1.0, "crops of a swap must pass for crops of its style picture", ge=0)
    code_consistency: CodeConsistencyWeights = Field(default_factory=CodeConsistencyWeights)
    content_alignment: float = knob(1.0, "the hybrid equals the swap inside the mask and the picture outside", ge=0)


class DiscriminatorWeights(Section):
    """What the image discriminator is trained on."""

    gan_real: float = knob(1.0, "recognise real pictures", ge=0)
    gan_rec: float = knob(0.5, "recognise reconstructions", ge=0)
    gan_swap: float = knob(0.5, "recognise swaps", ge=0)
    r1: float = knob(1.0, "gradient penalty loss.r1_gamma/2 * E|grad|^2 on real pictures", ge=0)


class PatchDiscriminatorWeights(Section):
    """What the patch co-occurrence discriminator is trained on."""

    real: float = knob(1.0, "recognise crops of one picture", ge=0)
    fake: float = knob(1.0, "recognise crops of a swap beside crops of its style picture", ge=0)
    r1: float = knob(1.0, "gradient penalty, loss.patch_r1_gamma, with respect to the real crops", ge=0)


class LossConfig(Section):
    """Weights by the losses' names (0 removes a term from the graph) and what else the losses need."""

    g: GeneratorWeights = Field(default_factory=GeneratorWeights)
    d: DiscriminatorWeights = Field(default_factory=DiscriminatorWeights)
    dp: PatchDiscriminatorWeights = Field(default_factory=PatchDiscriminatorWeights)
    r1_gamma: float = knob(10.0, "gamma of the image discriminator's R1: gamma/2 * E|grad|^2", ge=0)
    patch_r1_gamma: float = knob(1.0, "gamma of the patch discriminator's R1", ge=0)
    r1_every: int = knob(16, "both R1 terms are computed every so many steps, and count so many times", "steps", ge=1)
    consistency_every: int = knob(16, "code consistency and content alignment, every so many steps (K)", "steps", ge=1)
    gan_start_kimg: float = knob(0.0, "the autoencoder learns to reconstruct on its own until this point", "kimg", ge=0)
    consistency_start_kimg: float = knob(0.0, "no code consistency or alignment before this point", "kimg", ge=0)
    stop_gradient_targets: bool = knob(True, "the two TCP losses do not move their own targets")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every term by the name it has in the logs: `g/l1`, `g/code_consistency/content`, `d/r1`, ..."""
        groups = {"g": self.g.model_dump(), "d": self.d.model_dump(), "dp": self.dp.model_dump()}
        return {key.replace(".", "/"): float(weight) for key, weight in _flatten(groups)}


class BlendConfig(Section):
    """Where two pictures' features are mixed, and the random masks of content alignment."""

    strategy: Literal["encoder_features", "style_map", "generator_features"] = knob(
        "style_map", "where the mask mixes two pictures, in training and in editing"
    )
    masks: list[Literal["rectangle", "ellipse", "brush", "half_plane"]] = knob(
        list(MASK_KINDS), "kinds of random masks, drawn with equal chances"
    )
    min_area: float = knob(0.1, "smallest area of a random mask", "share", gt=0, lt=1)
    max_area: float = knob(0.6, "largest area of a random mask", "share", gt=0, lt=1)
    complement_probability: float = knob(0.5, "chance that a mask is turned inside out", "share", ge=0, le=1)


class AugmentConfig(Section):
    """Help for the codes to divide their work; not part of TCP as published, 0 = off."""

    content_colours: float = knob(
        0.0,
        "content codes are those of copies whose colours were mixed at random, up to this share",
        "share",
        ge=0,
        le=1,
    )
    least_colours: float = knob(
        0.0, "of that share, what every copy has at least", "share of content_colours", ge=0, le=1
    )
    colour_grid: int = knob(
        1, "places along a side at which that mixing differs; between them it is interpolated", "places", ge=1, le=64
    )
    colour_clusters: int = knob(
        0, "clusters of a picture's colours, each mixed by itself; 0 = mix by place alone", "clusters", ge=0, le=64
    )
    swaps_start_kimg: Optional[float] = knob(
        None,
        "from this point on a swap of every two pictures stands for its content picture's content and for its style "
        "picture's style; null = never",
        "kimg",
        ge=0,
    )


class OptimizerConfig(Section):
    """One optimizer, by the name and the arguments that Keras knows."""

    name: str = knob("adam", "a registered Keras optimizer; `Addons>NAME` in the addons stack", min_length=1)
    learning_rate: float = knob(0.002, "step size", gt=0)
    args: dict[str, Any] = knob(dict(ADAM_ARGS), "its other arguments; these defaults are kept for Adam only")

    @model_validator(mode="before")
    @classmethod
    def _adam_keeps_its_defaults(cls, values: Any) -> Any:
        """Setting one of Adam's arguments leaves the others; naming another optimizer leaves none of them."""
        if not isinstance(values, dict):
            return values
        args = values.get("args", {})
        if not isinstance(args, dict):
            return values
        adam = values.get("name", "adam") in ("adam", "Adam")
        return {**values, "args": {**ADAM_ARGS, **args} if adam else args}


class OptimizersConfig(Section):
    """Encoder and generator share one optimizer, the two discriminators the other."""

    generator: OptimizerConfig = Field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = Field(default_factory=OptimizerConfig)


class EmaConfig(Section):
    """The running average of encoder and generator, which is what is evaluated, edited with and exported."""

    half_life_kimg: float = knob(
        10.0, "after this many pictures old weights count for half; at most a quarter of those seen", "kimg", gt=0
    )


class TrainConfig(Section):
    """How long, and what is written when. Training is counted in kimg: thousands of real pictures seen."""

    kimg: float = knob(25000.0, "length of the training", "kimg", gt=0)
    start_from: Optional[str] = knob(
        None, "a run directory, or `pretrained/...`, whose averaged encoder and generator a new training begins with"
    )
    tick_kimg: float = knob(4.0, "one line of metrics every so often", "kimg", gt=0)
    grid_kimg: float = knob(100.0, "picture grids every so often", "kimg", gt=0)
    checkpoint_kimg: float = knob(100.0, "a checkpoint every so often", "kimg", gt=0)
    keep_checkpoints: int = knob(3, "older checkpoints are deleted", "checkpoints", ge=1)
    accumulate: int = knob(
        1, "parts of a replica's batch that are worked on one after another, in the memory of one", "parts", ge=1
    )
    concurrent: int = knob(
        1,
        "parts of a replica's batch, at most, that are worked on at the same time, each on its share of the CPU's "
        "cores: less time for small networks, more memory; a GPU takes all at once",
        "parts",
        ge=1,
    )
    recompute: bool = knob(
        False, "forget activations inside blocks and compute them again for the gradient: less memory, more time"
    )
    xla: bool = knob(False, "compile a step's gradients with XLA: for one GPU; compiling takes minutes at every start")
    rollbacks: int = knob(
        0, "returns to the last good checkpoint, with other data, when numbers are not finite", "times", ge=0
    )
    evaluate_examples: int = knob(256, "held-out pictures for the evaluation at the end", "images", ge=2)


class Config(Section):
    """One complete experiment."""

    seed: int = knob(0, "of every random draw, data order included", ge=0, lt=2**31)
    deterministic: bool = knob(False, "bit-equal repeats on one device, at some cost in speed")
    mixed_precision: Precision = knob("float32", "Keras's policy for the arithmetic")
    replicas: Union[Literal["auto"], int, list[str]] = knob(
        "auto", "`auto` (all visible GPUs, else the CPU), a number of devices or a list of their names"
    )
    multi_worker: bool = knob(
        False, "train together with the other workers that the environment variable TF_CONFIG names"
    )
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    patches: PatchesConfig = Field(default_factory=PatchesConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    blend: BlendConfig = Field(default_factory=BlendConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    optimizer: OptimizersConfig = Field(default_factory=OptimizersConfig)
    ema: EmaConfig = Field(default_factory=EmaConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)

    @property
    def known_replicas(self) -> int:
        """How many replicas `replicas` says; `auto`, for which devices have to be looked at, counts as one."""
        if isinstance(self.replicas, list):
            return len(self.replicas)
        return 1 if self.replicas == "auto" else self.replicas

    def parts_at_once(self, replicas: int) -> int:
        """Parts worked on at the same time on a CPU: as many of `train.concurrent` as divide a replica's pairs.

        XLA, too, takes all at once.
        """
        pairs = self.data.batch_size // (2 * replicas * self.train.accumulate)
        most = 1 if self.train.xla else self.train.concurrent
        return max(count for count in range(1, most + 1) if pairs % count == 0)

    @field_validator("replicas", mode="wrap")
    @classmethod
    def _replicas_in_one_sentence(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        # A union's own message has one line per alternative.
        try:
            replicas = handler(value)
        except ValidationError:
            replicas = None
        names = replicas if isinstance(replicas, list) else ["-"]
        if replicas is None or replicas == [] or replicas == 0 or (isinstance(replicas, int) and replicas < 0):
            raise ValueError(f"must be 'auto', a number of devices >= 1 or a list of device names, got {value!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"names a device twice: {value!r}")
        return replicas

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Config:
        problems = list(_impossible(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _impossible(config: Config) -> Iterator[str]:
    """One line, beginning with a dotted path, for every combination of values that cannot work."""
    data, model, patches, loss, blend = config.data, config.model, config.patches, config.loss, config.blend
    if config.multi_worker and config.replicas != "auto":
        yield f"replicas: with multi_worker every worker uses all of its devices ('auto'), got {config.replicas!r}"
    if (data.source is None) == (data.sources is None):
        given = f"got source {data.source!r} and sources {data.sources!r}"
        yield f"data.source: exactly one of data.source and data.sources must be set, {given}"
    if data.sources is not None and len(data.sources) < 2:
        yield f"data.sources: joins two or more data sets, got {data.sources!r}; for one use data.source"
    for source in (data.sources or []) if data.source is None else [data.source]:
        if not re.fullmatch(r"scenes|folder:.+|tfds:.+", source):
            key = "data.source" if data.source is not None else "data.sources"
            yield f"{key}: must be 'scenes', 'folder:PATH' or 'tfds:NAME', got {source!r}"
    if data.load_size is not None and data.preprocess == "resize":
        yield f"data.load_size: has no meaning with data.preprocess 'resize', got {data.load_size}"
    elif data.short_side < data.resolution:
        yield f"data.load_size: must be at least data.resolution = {data.resolution}, got {data.load_size}"

    replicas = config.known_replicas  # what auto finds is checked when the devices are known
    if data.batch_size % 2:
        yield f"data.batch_size: must be even, because neighbours swap their styles, got {data.batch_size}"
    elif data.batch_size % (2 * replicas):
        yield (
            f"data.batch_size: must give each replica the same even number of pictures, "
            f"got {data.batch_size} for {replicas} replicas"
        )

    stride = 2**model.downsamples
    halvings = max(0, round(math.log2(data.resolution)) - 2)
    if data.resolution % stride:
        yield f"data.resolution: must be a multiple of 2^model.downsamples = {stride}, got {data.resolution}"
    elif data.resolution % 2**halvings:
        yield (
            f"data.resolution: the image discriminator halves it {halvings} times, so it must be a multiple of "
            f"{2**halvings}, got {data.resolution}"
        )
    elif data.resolution // stride < SMALLEST_STYLE_GRID:
        yield (
            f"model.downsamples: the style head needs {SMALLEST_STYLE_GRID} positions a side, "
            f"{data.resolution} px leave {data.resolution // stride}, got {model.downsamples}"
        )
    if model.max_channels < model.channels:
        yield f"model.max_channels: must be at least model.channels = {model.channels}, got {model.max_channels}"
    if model.patch_size & (model.patch_size - 1):
        yield f"model.patch_size: must be a power of two, got {model.patch_size}"

    if patches.min_scale > patches.max_scale:
        yield f"patches.min_scale: must not exceed patches.max_scale = {patches.max_scale}, got {patches.min_scale}"
    elif patches.min_scale * data.resolution < 2:
        yield f"patches.min_scale: crops of {data.resolution} px pictures must be 2 px or more, got {patches.min_scale}"
    if not blend.masks:
        yield f"blend.masks: must name at least one of {', '.join(MASK_KINDS)}"
    if len(set(blend.masks)) != len(blend.masks):
        yield f"blend.masks: names a kind twice, got {blend.masks}"
    if blend.min_area > blend.max_area:
        yield f"blend.min_area: must not exceed blend.max_area = {blend.max_area}, got {blend.min_area}"

    if config.augment.colour_clusters and config.augment.colour_grid > 1:
        yield f"augment.colour_grid: colours are mixed by cluster or by place, got {config.augment.colour_grid} places"
    if config.augment.swaps_start_kimg is not None and not config.augment.content_colours:
        yield "augment.swaps_start_kimg: the other contents are of recoloured copies, but augment.content_colours is 0"

    weights = loss.weights
    if not any(weight for name, weight in weights.items() if name.startswith("g/")):
        yield "loss.g: every weight is 0, encoder and generator would learn nothing"
    if loss.gan_start_kimg and not loss.g.l1:
        yield "loss.gan_start_kimg: until then only loss.g.l1 teaches, which is 0"
    # The generator's pull is made of the discriminator's gradient for the same pictures, so each needs its opponent.
    learns = {name: loss.d.gan_real and weights[f"d/{name}"] for name in ("gan_rec", "gan_swap")}
    alone = [f"loss.g.{name}" for name in learns if weights[f"g/{name}"] and not learns[name]]
    if alone:
        yield f"loss.d: {' or '.join(alone)} needs a discriminator that learns, but a weight of loss.d is 0"
    if loss.g.patch_gan and not (loss.dp.real and loss.dp.fake):
        yield "loss.dp: loss.g.patch_gan needs a patch discriminator that learns, but a weight of loss.dp is 0"

    for key in ("generator", "discriminator"):
        if "learning_rate" in getattr(config.optimizer, key).args:
            yield f"optimizer.{key}.args.learning_rate: belongs one level up, in optimizer.{key}.learning_rate"


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and aliases and reads 1e-8 as the number it is in YAML 1.2."""

    depth = 0

    def compose_node(self, parent: Optional[yaml.Node], index: Any) -> Optional[yaml.Node]:
        if self.check_event(yaml.AliasEvent):  # a few of them can stand for more values than any memory holds
            raise ConfigError(f"*{self.peek_event().anchor}: aliases are not supported")
        self.depth += 1
        if self.depth > DEEPEST:
            raise ConfigError(f"not a configuration: nested more than {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)) or key in seen:
                raise ConfigError(f"{key}: given twice, again in line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in _Loader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: what looks like a date or a number and is none
        raise ConfigError(f"{origin}: not YAML: {' '.join(str(error).split())}") from None


def load(path: Union[str, Path], overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies overrides such as "loss.r1_gamma=2", whose values are YAML too.

    Raises ConfigError with one line per problem.
    """
    file = Path(path)
    if not file.is_file():
        beside = ", ".join(sorted(str(other) for other in file.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"{file}: no such configuration; beside it: {beside}")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    values = _parse(text, str(file))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must hold keys and values, got a {type(values).__name__}")
    for override in overrides:
        _override(values, override)
    return from_dict(values)


def from_dict(values: dict[str, Any]) -> Config:
    """`Config.model_validate` with its problems told as one ConfigError, one line each."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from None


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, which unaided loses the rarer ends of lines in a text: in a path they are letters."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        style = '"' if set(text) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def dump(config: Config) -> str:
    """The complete configuration, defaults included, as YAML that `load` reads back to an equal one."""
    return str(yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def flat(config: Config) -> Iterator[tuple[str, Any]]:
    """Every key's dotted path and value."""
    return _flatten(config.model_dump())


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{override}: an override looks like loss.r1_gamma=2")
    for depth, key in enumerate(keys[:-1], start=1):
        inner = values.get(key)
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{path}: {'.'.join(keys[:depth])} is a value, not a group of keys")
        values = inner
    values[keys[-1]] = _parse(text, path)


def _explain(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "value_error":
            message = str(problem["ctx"]["error"])
            yield from [f"{path}: {message}"] if path else message.splitlines()  # cross-checks name their keys
        elif problem["type"] == "extra_forbidden":
            known = [key for key, _ in _fields(Config)]
            close = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
            yield f"{path}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
        else:
            wanted = problem["msg"].replace("Input should be", "must be", 1).replace("a valid ", "of type ", 1)
            wanted = re.sub(r"of type dictionary or instance.*", "a group of keys", wanted)
            yield f"{path}: {wanted[0].lower() + wanted[1:]}, got {problem['input']!r}"


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for key, field in section.model_fields.items():
        kind: Any = field.annotation
        if get_origin(kind) is None and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", field


def reference() -> str:
    """A Markdown table of all keys: type, default, unit, range, meaning."""
    lines = ["| key | type | default | unit | range | meaning |", "|---|---|---|---|---|---|"]
    for key, field in _fields(Config):
        annotation: Any = field.annotation
        kind = str(annotation) if get_origin(annotation) else annotation.__name__
        kind = re.sub(r"typing\.|NoneType", lambda found: "null" if found[0] == "NoneType" else "", kind)
        kind = re.sub(r"Literal\[([^]]+)\]", lambda found: found[1].replace("'", "").replace(", ", " or "), kind)
        kind = re.sub(r"Union\[(.+)\]$", lambda found: found[1].replace(", ", " or "), kind)
        kind = re.sub(r"Optional\[(.+)\]$", r"\1 or null", kind)
        limits = []
        for constraint in field.metadata:
            for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
                if hasattr(constraint, name):
                    limits.append(f"{sign} {getattr(constraint, name)}")
        default = yaml.safe_dump(field.get_default(call_default_factory=True), default_flow_style=True, width=999)
        default = default.replace("\n...", "").strip()
        extra = field.json_schema_extra
        unit = extra.get("unit", "") if isinstance(extra, dict) else ""
        meaning = str(field.description).replace("|", "\\|")  # a bare one would end the column
        lines.append(f"| `{key}` | {kind} | `{default}` | {unit} | {', '.join(limits)} | {meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference())
