"""The optimizers that `optim.name` knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from intern_trainer.config.schema import Config
from intern_trainer.engine.runtime import load_deepspeed
from intern_trainer.errors import ConfigError, EnvironmentFault

APEX = (
    "pip install --no-build-isolation --config-settings '--build-option=--cpp_ext' "
    "--config-settings '--build-option=--cuda_ext' git+https://github.com/NVIDIA/apex.git"
)


def build_optimizer(
    groups: list[dict[str, Any]], config: Config, device: torch.device, offload: bool
) -> torch.optim.Optimizer:
    """The optimizer over `groups` (of `optim.parameter_groups`).

    Raises:
        EnvironmentFault: it is not built on this machine, or cannot be.
        ConfigError: it does not run on this device.
    """
    optim = config.optim
    parts = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    adam = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps}
    if optim.name == "adamw":
        return torch.optim.AdamW(parts, fused=True, **adam)  # type: ignore[arg-type]
    if optim.name == "ds_cpu_adam":
        if device.type != "cpu" and not offload:
            raise ConfigError(
                f"optim.name is ds_cpu_adam, and the optimizer's state is on {device.type}",
                "DeepSpeedCPUAdam updates weights in host memory",
                'offload the optimizer in the ds_config ("offload_optimizer": {"device": "cpu"}), or optim.name=adamw',
            )
        return _compiled(lambda: load_deepspeed().ops.adam.DeepSpeedCPUAdam(parts, adamw_mode=True, **adam), optim.name)
    if optim.name == "ds_fused_adam":
        return _compiled(lambda: load_deepspeed().ops.adam.FusedAdam(parts, adam_w_mode=True, **adam), optim.name)
    return _apex(parts, config, device, adam)


def _compiled(make: Callable[[], Any], name: str) -> Any:
    """DeepSpeed compiles its own optimizers when they are first made; what goes wrong there is about the machine."""
    try:
        return make()
    except Exception as error:  # the compiler's failures come in many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise EnvironmentFault(
            f"optim.name={name} could not be compiled: {reason}",
            "DeepSpeed builds this optimizer with a C++ (on GPUs CUDA) compiler and ninja when it is first used",
            "install g++ and ninja (and the CUDA toolkit of torch's version), or optim.name=adamw, which needs none",
        ) from error


def _apex(parts: list[dict[str, Any]], config: Config, device: torch.device, adam: dict[str, Any]) -> Any:
    name = config.optim.name
    fix = f"build NVIDIA's from source ({APEX}), or optim.name=adamw"
    try:
        import apex
    except ImportError:
        raise EnvironmentFault(f"optim.name is {name}, and apex is not installed", "", fix) from None
    if not hasattr(apex, "optimizers"):
        try:
            import apex.optimizers
        except ImportError:
            raise EnvironmentFault(
                f"optim.name is {name}, and the installed `apex` has no optimizers ({getattr(apex, '__file__', None)})",
                "PyPI's package `apex` is another project than NVIDIA's apex",
                f"pip uninstall apex; {fix}",
            ) from None
    if device.type != "cuda":
        raise EnvironmentFault(
            f"optim.name is {name}, and this is {device.type}", "apex's optimizers run on CUDA alone", fix
        )
    optimizers = apex.optimizers
    try:
        if name == "apex_fused_adam":
            return optimizers.FusedAdam(parts, adam_w_mode=True, **adam)
        if name == "apex_fused_lamb":
            return optimizers.FusedLAMB(parts, **adam, max_grad_norm=float("inf"))  # clipping is the engine's
        return optimizers.FusedSGD(parts, lr=config.optim.lr, momentum=config.optim.momentum)
    except RuntimeError as error:  # "apex.optimizers.FusedAdam requires cuda extensions"
        raise EnvironmentFault(f"{name}: {error}", "apex was built without its CUDA extensions", fix) from error
