"""What is done when a run hangs, or its numbers go wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from intern_trainer.config.section import PositiveInt, Section


class Spike(Section):
    """What counts as a spike of the loss, and how far to go back."""

    deviations: Annotated[float, Field(gt=0)]
    """A loss that is more than so many standard deviations above its running mean is a spike."""
    back: PositiveInt
    """So many steps before it are taken back with it. The run goes on from the newest checkpoint before them, and
    leaves their samples out."""


class Guard(Section):
    """Against hangs, numbers that are not finite, and ranks that part ways."""

    hang_seconds: Annotated[float, Field(gt=0)] = 600.0
    """A step that takes longer is a hang: all ranks write their stacks to RUN/hangs, and the log says who waits
    where."""
    slow_seconds: Annotated[float, Field(gt=0)] = 1500.0
    """The same for a start with its first step, for an evaluation, and for a save."""
    on_hang: Literal["report", "stop"] = "report"
    """`report`: go on waiting. `stop`: all ranks end with exit code 8."""
    bad_steps: Annotated[int, Field(ge=0)] = 0
    """So many steps in a row whose loss or gradient is not finite are left out; one more stops the run. Above 0 the
    buffers of the model (statistics of BatchNorm, the queue of DeCLIP) are copied before each step."""
    spike: Spike | None = None
    """Go back where the loss jumps; None: never."""
    trace: bool = False
    """For finding faults: after each step compare over ranks which modules ran, in which order, and name the first
    difference."""
