"""The named networks of the family.

`metanet_b4`, `b7`, `b15` are the released MetaNets (GV-B), `uninet_b0` to `b6` the released UniNets. The rest is ours:
`metanet_1b` and `metanet_10b` keep UniNet's searched ratios at larger widths, `*_h100` have fewer and narrower early
convolutions (faster on large GPUs; what they cost in accuracy is not measured), `metanet_debug` runs on a laptop.
The press reported ten billion parameters for INTERN; the largest released network, B15, has one billion.
"""

from __future__ import annotations

from intern_zoo.metanet.config import Downsample, MetaNetConfig

UNINET_DOWNSAMPLES: tuple[Downsample, ...] = ("block", "local", "local", "local", "local_global", "local_global")


def _metanet(depths: tuple[int, ...], widths: tuple[int, ...], head_dim: int) -> MetaNetConfig:
    return MetaNetConfig(depths, widths, ("mbconv",) * 4 + ("attention",) * 2, head_dim=head_dim)


def _uninet(depths: tuple[int, ...], widths: tuple[int, ...]) -> MetaNetConfig:
    return MetaNetConfig(depths, widths, ("mbconv",) * 4 + ("attention",) * 2, downsamples=UNINET_DOWNSAMPLES)


_WIDTHS_1B = (128, 256, 384, 768, 768, 1536)
_WIDTHS_10B = (256, 512, 1024, 2048, 2048, 4096)
_METANET_1B = _uninet((4, 6, 12, 12, 12, 24), _WIDTHS_1B).changed(
    act="gelu_tanh", stem_width=64, head_dim=64, head_width=1536
)
_METANET_10B = _uninet((4, 6, 12, 12, 16, 36), _WIDTHS_10B).changed(
    act="gelu_tanh", stem_width=128, head_dim=128, head_width=2048
)

VARIANTS: dict[str, MetaNetConfig] = {
    "metanet_debug": MetaNetConfig(
        depths=(1, 1, 1, 2, 1, 2),
        widths=(16, 24, 32, 64, 64, 128),
        blocks=("fused_mbconv", "fused_mbconv", "mbconv", "mbconv", "attention", "xca"),
        expansions=(1, 4, 4, 3, 2, 4),
        downsamples=("block", "block", "block", "local", "local_global", "block"),
        stem_width=16,
        head_width=256,
        head_dim=16,
        act="gelu_tanh",
        layer_scale=0.1,
    ),
    "metanet_b4": _metanet((2, 3, 6, 6, 6, 12), (32, 64, 128, 192, 192, 384), head_dim=48),
    "metanet_b7": _metanet((2, 4, 8, 8, 8, 16), (48, 96, 160, 256, 256, 512), head_dim=32),
    "metanet_b15": MetaNetConfig(
        depths=(4, 6, 12, 12, 12, 24),
        widths=(128, 256, 512, 768, 768, 1536),
        blocks=("fused_mbconv",) * 2 + ("mbconv",) * 2 + ("xca",) * 2,
        stem_width=96,
        head_dim=64,
    ),
    "uninet_b0": _uninet((1, 2, 4, 4, 4, 8), (24, 48, 80, 128, 128, 256)),
    "uninet_b1": _uninet((1, 2, 4, 4, 4, 8), (24, 48, 80, 128, 128, 256)),
    "uninet_b2": _uninet((2, 3, 6, 6, 6, 12), (24, 48, 80, 128, 128, 256)),
    "uninet_b3": _uninet((2, 3, 7, 7, 7, 14), (24, 56, 96, 160, 160, 288)),
    "uninet_b4": _uninet((2, 4, 9, 9, 9, 18), (32, 64, 112, 192, 192, 352)),
    "uninet_b5": _uninet((3, 5, 10, 10, 10, 20), (32, 64, 112, 224, 224, 448)),
    "uninet_b6": _uninet((4, 6, 12, 12, 12, 24), (48, 96, 160, 256, 256, 512)),
    "metanet_1b": _METANET_1B,
    "metanet_10b": _METANET_10B,
    "metanet_1b_h100": _METANET_1B.changed(
        depths=(1, 2, 6, 8, 24, 24),
        expansions=(1, 3, 3, 3, 4, 5),
        widths=(64, 128, *_WIDTHS_1B[2:]),
        squeeze_of="input",
    ),
    "metanet_10b_h100": _METANET_10B.changed(
        depths=(1, 2, 6, 10, 24, 36),
        expansions=(1, 3, 4, 3, 3, 5),
        widths=(128, 256, *_WIDTHS_10B[2:]),
        squeeze_of="input",
    ),
}
"""Name -> configuration. The released networks' training resolutions are in `INPUT_SIZES`."""

INPUT_SIZES: dict[str, int] = {
    "metanet_debug": 64,
    "metanet_b4": 224,
    "metanet_b7": 224,
    "metanet_b15": 224,
    "uninet_b0": 160,
    "uninet_b1": 224,
    "uninet_b2": 256,
    "uninet_b3": 288,
    "uninet_b4": 320,
    "uninet_b5": 384,
    "uninet_b6": 448,
    "metanet_1b": 256,
    "metanet_10b": 256,
    "metanet_1b_h100": 256,
    "metanet_10b_h100": 256,
}
"""The side of a square input that each network is meant for, in pixels. Any other size works."""
