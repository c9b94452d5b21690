"""Probes of dense tasks: what a small head reads off the maps of a frozen image model, on scenes of the embedded set.

Heads are fitted on scenes of the training split and judged on scenes of the test split, which share no cut-out.
"""

from __future__ import annotations

from typing import Any

from intern_trainer.config.schema import Config
from intern_trainer.evaluate.probes import detection, segmentation
from intern_trainer.evaluate.probes.features import scene_features
from intern_trainer.evaluate.probes.fit import Protocol
from intern_trainer.ranks import Ranks

PROBES: dict[str, Any] = {"segmentation": segmentation, "detection": detection}
"""By name: modules with `layout(protocol)` and `probe(train, test, protocol, ranks)`."""


def probe(trunk: Any, name: str, protocol: Protocol, config: Config, ranks: Ranks) -> dict[str, float]:
    """Fit and judge one probe; figures by name, fractions. Collective; the same on every rank.

    Args:
        trunk: an image model of the zoo in evaluation mode, whole on this rank's device.
    """
    scenes = PROBES[name].layout(protocol)
    train = scene_features(trunk, "train", scenes, protocol.train, protocol.seed, config, ranks)
    test = scene_features(trunk, "test", scenes, protocol.test, protocol.seed, config, ranks)
    return PROBES[name].probe(train, test, protocol, ranks)


__all__ = ["PROBES", "Protocol", "probe"]
