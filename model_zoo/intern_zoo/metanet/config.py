"""The shape of a MetaNet, as plain data: six stages (or any number) of one kind of block each. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from intern_zoo.errors import ModelConfigError, closest

BlockKind = Literal["fused_mbconv", "mbconv", "attention", "xca"]
Downsample = Literal["block", "local", "local_global"]
ATTENTION_KINDS = ("attention", "xca")


@dataclass(frozen=True)
class MetaNetConfig:
    """Every choice that makes one network of the family. The tuples have one entry per stage.

    `downsamples[i]` says how stage i changes width and resolution: `block` = inside its first block (the released
    MetaNet), `local` = a convolutional down-sampling module in front (UniNet's L-DSM), `local_global` = one with
    attention over all tokens (UniNet's LG-DSM). `drop_path_mode`: `mask` = each sample draws for itself and every
    branch is computed for all (released); `rows` = a branch is computed for the samples that keep it, a fixed share.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    blocks: tuple[BlockKind, ...]
    expansions: tuple[int, ...] = (1, 4, 6, 3, 2, 5)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2)
    downsamples: tuple[Downsample, ...] = ("block",) * 6
    stem_width: int = 32
    head_width: int = 1280
    head_dim: int = 32
    act: Literal["gelu", "gelu_tanh"] = "gelu"
    norm: Literal["batch", "layer"] = "batch"
    squeeze_of: Literal["hidden", "input"] = "hidden"
    layer_scale: float = 1e-6
    drop_path_rate: float = 0.0
    drop_path_mode: Literal["mask", "rows"] = "mask"
    drop_rate: float = 0.0
    num_classes: int = 1000
    in_chans: int = 3
    global_pool: Literal["avg", ""] = "avg"

    def __post_init__(self) -> None:
        for field in fields(self):  # lists (from YAML or JSON) are as good as tuples
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        self._check()

    def changed(self, **overrides: Any) -> MetaNetConfig:
        """A copy with some fields replaced. Raises ModelConfigError on a field that does not exist."""
        names = [field.name for field in fields(self)]
        for name in overrides:
            if name not in names:
                raise ModelConfigError(
                    f"Unknown model option {name!r}.",
                    f"A MetaNet takes {', '.join(names)}.",
                    closest(name, names) or "Remove it.",
                )
        return replace(self, **overrides)

    @property
    def reductions(self) -> tuple[int, ...]:
        """Output stride of each stage in input pixels; the stem has stride 2."""
        reductions, reduction = [], 2
        for stride in self.strides:
            reduction *= stride
            reductions.append(reduction)
        return tuple(reductions)

    @property
    def out_stages(self) -> tuple[int, ...]:
        """The stages whose outputs are the feature levels: the last one at each output stride from 4 on."""
        reductions = self.reductions
        last = len(reductions) - 1
        return tuple(i for i, r in enumerate(reductions) if r >= 4 and (i == last or reductions[i + 1] != r))

    def drop_path_rates(self) -> list[list[float]]:
        """The drop rate of each block, by stage: linear from 0 in the first block to `drop_path_rate` in the last."""
        total = sum(self.depths)
        rates = [self.drop_path_rate * i / max(total - 1, 1) for i in range(total)]
        by_stage, start = [], 0
        for depth in self.depths:
            by_stage.append(rates[start : start + depth])
            start += depth
        return by_stage

    def block_inputs(self) -> list[int]:
        """The width that enters the first *block* of each stage (after its down-sampling module, where it has one)."""
        before = (self.stem_width, *self.widths[:-1])
        return [before[i] if self.downsamples[i] == "block" else self.widths[i] for i in range(len(self.widths))]

    def _check(self) -> None:
        n = len(self.widths)
        for name in ("depths", "blocks", "expansions", "strides", "downsamples"):
            if len(getattr(self, name)) != n:
                raise ModelConfigError(
                    f"{name} has {len(getattr(self, name))} entries and widths has {n}.",
                    "Each stage needs one entry in every per-stage option.",
                    f"Give {name} {n} entries.",
                )
        for name, known in (("blocks", get_args(BlockKind)), ("downsamples", get_args(Downsample))):
            for kind in getattr(self, name):
                if kind not in known:
                    raise ModelConfigError(
                        f"Unknown entry {kind!r} in {name}.",
                        f"Known are {', '.join(known)}.",
                        closest(str(kind), known),
                    )
        for name, known in (("act", ("gelu", "gelu_tanh")), ("norm", ("batch", "layer")),
                            ("squeeze_of", ("hidden", "input")), ("global_pool", ("avg", "")),
                            ("drop_path_mode", ("mask", "rows"))):  # fmt: skip
            if getattr(self, name) not in known:
                raise ModelConfigError(
                    f"{name} is {getattr(self, name)!r}.", f"It can be {' or '.join(map(repr, known))}.", "Choose one."
                )
        for stage, inputs in enumerate(self.block_inputs()):
            attends = self.blocks[stage] in ATTENTION_KINDS
            for width in {inputs, self.widths[stage]} if attends else set():
                if width % self.head_dim:
                    raise ModelConfigError(
                        f"Stage {stage} attends over {width} channels with head_dim {self.head_dim}.",
                        "The width of an attention stage, and what enters it, must be a multiple of head_dim.",
                        "Change head_dim or that width.",
                    )
            if self.downsamples[stage] == "local_global" and self.widths[stage] % self.head_dim:
                raise ModelConfigError(
                    f"Stage {stage} has an LG-DSM to {self.widths[stage]} channels with head_dim {self.head_dim}.",
                    "Its width must be a multiple of head_dim.",
                    "Change head_dim or that width.",
                )
