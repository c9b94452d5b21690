"""DeepSpeed behind one small interface. The only package that imports deepspeed."""

from intern_trainer.engine.build import build_engine
from intern_trainer.engine.engine import Engine, StepResult

__all__ = ["Engine", "StepResult", "build_engine"]
