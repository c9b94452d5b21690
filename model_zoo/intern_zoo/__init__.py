"""INTERN's models. Importing it also registers ours with timm."""

from intern_zoo import backbones as _backbones  # noqa: F401 (fills the registry)
from intern_zoo.errors import ModelConfigError, StateDictError, UnknownModelError, ZooError
from intern_zoo.flops import flops
from intern_zoo.registry import create_model, list_models

__all__ = [
    "ModelConfigError",
    "StateDictError",
    "UnknownModelError",
    "ZooError",
    "create_model",
    "flops",
    "list_models",
]
