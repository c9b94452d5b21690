"""The losses of image-text pretraining, as they are configured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from intern_trainer.config.section import NotNegative, PositiveInt, Section, as_list


class Declip(Section):
    """DeCLIP's terms (arXiv 2110.05208) with their weights, and what they are made of."""

    clip: NotNegative = 0.4
    """CLIP's loss between two views of each picture and two of its caption, mean of the four pairs."""
    nearest: NotNegative = 0.2
    """Each view of a picture to the nearest neighbour, among captions seen before, of each view of its caption."""
    simsiam: NotNegative = 0.2
    """The two views of a picture to each other (arXiv 2011.10566)."""
    mlm: NotNegative = 0.2
    """Masked words of the caption, guessed from the words before them."""
    queue: PositiveInt = 65536
    """Features of captions, of all ranks, among which neighbours are looked for; saved with the model."""
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the words that are to be guessed: 80 % of these are masked, 10 % become another word, 10 % stay."""
    projector: PositiveInt = 1024
    predictor: PositiveInt = 512
    """Widths of SimSiam's two heads."""
    synonyms: Path | None = None
    """Folder of WordNet's database files (Debian's package wordnet-base: /usr/share/wordnet), for captions whose other
    view has words replaced by synonyms. None: words are swapped or left out."""


class Loss(Section):
    """What pulls a picture and its caption together, and others apart."""

    kind: Literal["clip", "siglip", "declip"] = "clip"
    """`clip`: each picks its partner among all of the batch. `siglip`: each pair by itself is told to belong together
    or not (arXiv 2303.15343). `declip`: CLIP's loss over two views of each, and what `declip` says."""
    block: PositiveInt = 1024
    """Columns of the score matrix that a rank holds at once: memory is that of its rows x block, however large the
    batch."""
    initial_scale: Annotated[float, Field(gt=0)] | None = None
    """exp(logit scale) at the start; None: 1 / 0.07, as CLIP, or 10 for `siglip`, or the nearest of its bounds in
    `model`."""
    initial_bias: float = -10.0
    """`siglip`: the learned bias of all scores at the start, when most pairs do not belong together."""
    declip: Declip = Declip()


class Local(Section):
    """The local phase: two views of each picture agree place by place (VICReg's terms between places), while the
    contrastive loss goes on. Each term has its weight."""

    strides: Annotated[list[PositiveInt], BeforeValidator(as_list), Field(min_length=1)] = [16, 32]
    """Levels of the image tower that are compared, by the pixels a cell."""
    points: PositiveInt = 7
    """So many x so many points of what the two views share are compared."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Least share of the smaller view that the two have in common."""
    width: PositiveInt = 256
    """Channels of the projectors' output."""
    contrastive: NotNegative = 1.0
    """The loss between pictures and captions. At 0 the model forgets captions."""
    invariance: NotNegative = 1.0
    variance: NotNegative = 1.0
    covariance: NotNegative = 0.04
