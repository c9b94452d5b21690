"""How often to save, and what failures leave of the time (Young, CACM 17(9), 1974; Daly, FGCS 22(3), 2006).

All times in one unit. `failures` is the mean time between failures of the whole run, which come at random.
"""

from __future__ import annotations

import math


def young(save: float, failures: float) -> float:
    """Young's interval between saves, sqrt(2 save failures)."""
    return math.sqrt(2 * save * failures)


def daly(save: float, failures: float) -> float:
    """Daly's interval, of higher order: computing time between the end of a save and the beginning of the next."""
    if save >= 2 * failures:
        return failures
    ratio = save / (2 * failures)
    return young(save, failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def goodput(interval: float, save: float, restart: float, failures: float) -> float:
    """Share of the time in which the run gets on, with a save after every `interval` of computing, and `restart` from a
    failure to the last save's state (Daly's equation 20: failures may also fall into saves and restarts).
    """
    whole = failures * math.exp(restart / failures) * math.expm1((interval + save) / failures)
    return interval / whole
