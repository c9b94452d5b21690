"""The phases of a run: picture size and batch by samples seen (progressive resolution).

A run sees `train.steps x train.global_batch` samples, with `train.phases` or without. A phase takes whole steps, so it
ends within half a batch of its share. Step s then covers the positions [first_sample(s), first_sample(s + 1)) of the
order of samples, in closed form: a run goes on inside any phase without replaying those before.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from intern_trainer.config.schema import Config


@dataclass(frozen=True)
class Span:
    """A phase in whole steps: what its steps look like, and where it begins."""

    image_size: int
    global_batch: int
    micro_batch: int | None
    first_step: int
    first_sample: int
    steps: int

    @property
    def end_step(self) -> int:
        return self.first_step + self.steps

    @property
    def end_sample(self) -> int:
        return self.first_sample + self.steps * self.global_batch


class Phases:
    """All steps of a run.

    Attributes:
        spans: the phases in order, at least one. steps, samples: of the whole run.
    """

    def __init__(self, config: Config) -> None:
        train, side = config.train, config.model.image_size
        wanted = train.steps * train.global_batch
        spans: list[Span] = []
        for phase in train.phases:
            _append(
                spans,
                phase.image_size or side,
                phase.global_batch or train.global_batch,
                phase.micro_batch or train.micro_batch,
                round(phase.until * wanted),
            )
        if not train.phases or train.phases[-1].until < 1:
            _append(spans, side, train.global_batch, train.micro_batch, wanted)
        self.spans = tuple(spans)
        self.steps, self.samples = spans[-1].end_step, spans[-1].end_sample

    def at(self, step: int) -> Span:
        """The phase of optimizer step `step` (the first is 0); the last one goes on for ever."""
        return self.spans[bisect_right(self.spans, step, key=lambda span: span.first_step) - 1]

    def first_sample(self, step: int) -> int:
        """Samples that the steps before `step` take together: the position where it begins."""
        span = self.at(step)
        return span.first_sample + (step - span.first_step) * span.global_batch

    def samples_by_phase(self, step: int) -> list[int]:
        """Of the steps before `step`."""
        sample = self.first_sample(step)
        return [max(0, min(sample, span.end_sample) - span.first_sample) for span in self.spans]


def _append(spans: list[Span], side: int, batch: int, micro: int | None, end_sample: int) -> None:
    """One more phase, up to the whole step nearest to `end_sample`, of one step at least."""
    step, sample = (spans[-1].end_step, spans[-1].end_sample) if spans else (0, 0)
    steps = max(1, round((end_sample - sample) / batch))
    spans.append(Span(side, batch, micro, step, sample, steps))
