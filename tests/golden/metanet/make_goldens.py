"""Record what the authors' own code makes of seeded weights: keys, shapes, parameter counts, output digests.

    python -m tests.golden.metanet.make_goldens GVB_METANET.py UNINET_FOLDER [variant ...]

GVB_METANET.py is `gvbenchmark/cls/models/backbones/metanet.py` of OpenGVLab/gv-benchmark (Apache-2.0), UNINET_FOLDER
holds `uninet.py` and `model_utils.py` of Sense-X/UniNet (MIT). Neither is part of this repository. Their imports of
mmcls, mmcv and an old timm are replaced by the few names that the networks use. Writes beside this file
`<variant>.keys.txt` (one released key and its shape a line, sorted) and `<variant>.json`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm.layers
import torch
from torch import nn

from tests.golden.metanet.seeded import digest, seeded_picture, seeded_tensor

HERE = Path(__file__).parent
EXPANSION, STRIDES = [1, 4, 6, 3, 2, 5], [1, 2, 2, 2, 1, 2]
METANETS: dict[str, dict[str, Any]] = {
    "metanet_b4": {
        "repeats": [2, 3, 6, 6, 6, 12],
        "channels": [32, 64, 128, 192, 192, 384],
        "head_dim": 48,
        "mtb_type": 4,
    },
    "metanet_b7": {
        "repeats": [2, 4, 8, 8, 8, 16],
        "channels": [48, 96, 160, 256, 256, 512],
        "head_dim": 32,
        "mtb_type": 4,
    },
    "metanet_b15": {
        "repeats": [4, 6, 12, 12, 12, 24],
        "channels": [128, 256, 512, 768, 768, 1536],
        "head_dim": 64,
        "mtb_type": 15,
        "stem_dim": 96,
    },
}
UNINETS = [f"uninet_b{i}" for i in range(7)]
SIZES = [(224, 224), (192, 256)]
TRAIN_SIZE, TRAIN_BATCH = 64, 4
PRECISION = {"metanet_b15": torch.float32}  # fp64 for the others: the rounding that a test sees is then its own alone


def stub_imports() -> None:
    """Stand-ins for what the authors' files import and this environment does not have."""

    class Registry:
        def register_module(self) -> Any:
            return lambda cls: cls

    class Backbone(nn.Module):
        def __init__(self, init_cfg: object = None) -> None:
            super().__init__()

    def no_init(tensor: torch.Tensor, **_: object) -> torch.Tensor:
        return tensor  # every weight is replaced below

    layers = {
        "DropPath": timm.layers.DropPath,
        "Mlp": timm.layers.Mlp,
        "PatchEmbed": None,
        "lecun_normal_": no_init,
        "trunc_normal_": no_init,
    }
    modules: dict[str, dict[str, object]] = {
        "mmcls": {}, "mmcls.models": {}, "mmcls.models.backbones": {}, "mmcv": {}, "mmcv.utils": {},
        "mmcls.models.backbones.base_backbone": {"BaseBackbone": Backbone},
        "mmcls.models.builder": {"BACKBONES": Registry()},
        # no class matches, so that .train() leaves BatchNorm in training mode
        "mmcv.utils.parrots_wrapper": {"_BatchNorm": type("Never", (), {})},
        "timm.models.layers": layers,
        "timm.models.registry": {"register_model": lambda function: function},
    }  # fmt: skip
    for name, members in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module


def load_file(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem + "_authors", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seed_weights(model: nn.Module, precision: torch.dtype) -> None:
    """Give every parameter and buffer the value that its name stands for."""
    model.to(precision)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(seeded_tensor(name, tuple(tensor.shape)))


def uninet_arguments(uninet: types.ModuleType, name: str) -> dict[str, Any]:
    """What the authors' entry point passes to the network's class."""
    captured: dict[str, Any] = {}
    real = uninet.VisionTransformer
    uninet.VisionTransformer = lambda **arguments: captured.update(arguments)  # type: ignore[attr-defined]
    try:
        getattr(uninet, f"UniNetB{name[-1]}")()
    finally:
        uninet.VisionTransformer = real  # type: ignore[attr-defined]
    return captured


def stage_ends(name: str, model: Any, depths: list[int]) -> list[int]:
    """The index in `blocks` of each stage's last block (UniNet has a down-sampling module before each but one)."""
    modules_before = 1 if name.startswith("uninet") else 0
    ends, count = [], 0
    for stage, depth in enumerate(depths):
        count += depth + (modules_before if stage else 0)
        ends.append(count - 1)
    assert count == len(model.blocks)
    return ends


def record(name: str, model: Any, depths: list[int], height: int, width: int) -> dict[str, Any]:
    """Digests of the stages' outputs as maps, of the pooled features, and of the scores where there are any."""
    outputs: dict[int, torch.Tensor] = {}
    precision = next(model.parameters()).dtype
    hooks = [
        model.blocks[end].register_forward_hook(lambda _m, _i, out, stage=stage: outputs.__setitem__(stage, out))
        for stage, end in enumerate(stage_ends(name, model, depths))
    ]
    model.eval()
    with torch.no_grad():
        pooled = model.forward_features(seeded_picture(1, height, width).to(precision))
    for hook in hooks:
        hook.remove()
    digests, h, w = {}, -(-height // 2), -(-width // 2)
    for stage, out in outputs.items():
        h, w = -(-h // STRIDES[stage]), -(-w // STRIDES[stage])
        as_map = out if out.dim() == 4 else out.transpose(1, 2).unflatten(2, (h, w))
        digests[f"stage{stage}"] = digest(as_map)
    digests["pooled"] = digest(pooled)
    if name.startswith("uninet"):
        digests["scores"] = digest(model.classifier(pooled))
    return digests


def record_training(model: Any) -> dict[str, Any]:
    """One training pass over batch statistics: the pooled features, gradients and new running statistics."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    pooled = model.forward_features(seeded_picture(TRAIN_BATCH, TRAIN_SIZE, TRAIN_SIZE).double())
    pooled.square().mean().backward()
    gradients = {n: p.grad for n, p in sorted(model.named_parameters()) if p.grad is not None}
    return {
        "pooled": digest(pooled),
        "gradient_norms": digest(torch.stack([g.norm() for g in gradients.values()])),
        "stem_gradient": digest(gradients["stem.0.weight"]),
        "running": digest(torch.cat([b for n, b in sorted(model.named_buffers()) if n.endswith(("_mean", "_var"))])),
    }


def models(gvb: types.ModuleType, uninet: types.ModuleType, wanted: set[str]) -> Iterator[tuple[str, list[int], Any]]:
    """(name, depths, function of the input side that builds the authors' model), one variant after another."""
    for name, arguments in METANETS.items():
        if name in wanted or not wanted:
            fixed = {"expansion": EXPANSION, "frozen_stages": -1, **arguments}
            yield name, arguments["repeats"], lambda side, fixed=fixed: gvb.MetaNet(input_size=side, **fixed)
    for name in UNINETS:
        if name in wanted or not wanted:
            fixed = uninet_arguments(uninet, name)  # the entry points fix the input size; only that is changed
            yield (
                name,
                fixed["repeats"],
                lambda side, fixed=fixed: uninet.VisionTransformer(**{**fixed, "input_size": side}),
            )


def main() -> None:
    gvb_file, uninet_folder, *wanted = sys.argv[1:]
    stub_imports()
    sys.path.insert(0, uninet_folder)
    gvb, uninet = load_file(Path(gvb_file)), load_file(Path(uninet_folder) / "uninet.py")
    for name, depths, build in models(gvb, uninet, set(wanted)):
        model = build(224)
        precision = PRECISION.get(name, torch.float64)
        seed_weights(model, precision)
        keys = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        golden: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "outputs": {}}
        for height, width in SIZES:
            if name.startswith("metanet") or height == width:  # the authors' UniNet takes squares only
                golden["outputs"][f"{height}x{width}"] = record(name, model, depths, height, width)
        if name in ("metanet_b4", "uninet_b1"):
            small = build(TRAIN_SIZE)
            seed_weights(small, precision)
            golden["training"] = record_training(small)
        lines = [f"{key} {list(shape)}" for key, shape in sorted(keys.items())]
        (HERE / f"{name}.keys.txt").write_text("\n".join(lines) + "\n")
        (HERE / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n")
        print(name, golden["parameters"], len(keys), "keys")


if __name__ == "__main__":
    main()
