"""Two towers with what DeCLIP trains them by: self-supervision within each modality and a queue of neighbours.

arXiv 2110.05208. Only the towers are used afterwards; the names of what else is here are `two_tower.AUXILIARY`.

b batch, e width of the common space, f width in, d width of the projector, l context length, w width of the text
transformer, v words of the vocabulary, n masked tokens of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_zoo.feature_queue import FeatureQueue
from intern_zoo.metanet.norm import BatchNorm
from intern_zoo.text import TextTransformer
from intern_zoo.two_tower import TwoTower, TwoTowerOutput

NOTHING = -100
"""Label of a token that is not to be predicted (torch's `ignore_index`)."""


class DeclipOutput(NamedTuple):
    """What a training step leaves behind.

    Attributes:
        image_features, image2_features, text_features, text2_features: [b, e], unit norm.
        logit_scale: [1], exp'd and bounded.
        projected_2bd, predicted_2bd: SimSiam's z and p, those of the first views before those of the second.
        word_logits_nv: for each masked token, row by row, the scores of all words.
    """

    image_features: Tensor
    image2_features: Tensor
    text_features: Tensor
    text2_features: Tensor
    logit_scale: Tensor
    projected_2bd: Tensor
    predicted_2bd: Tensor
    word_logits_nv: Tensor


class MaskableEmbedding(nn.Module):
    """A table of v words, and one more vector for the id v, <|mask|>.

    The vector lies beside the table, not in it: so the table keeps the shape and the name that it has without.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self.mask = nn.Parameter(torch.empty(table.embedding_dim))
        nn.init.normal_(self.mask, std=0.02)

    def forward(self, ids_bl: Tensor) -> Tensor:
        masked_bl = ids_bl == len(self.weight)
        x_blw = F.embedding(ids_bl.masked_fill(masked_bl, 0), self.weight)
        return torch.where(masked_bl[..., None], self.mask, x_blw)


class FeatureNorm(BatchNorm):
    """Batch normalisation of vectors [b, c]: a map of one position."""

    def forward(self, x_bc: Tensor) -> Tensor:
        return super().forward(x_bc[:, :, None, None])[:, :, 0, 0]


def _layer(width: int, out: int, last: bool = False) -> list[nn.Module]:
    return [nn.Linear(width, out, bias=False), FeatureNorm(out), *([] if last else [nn.ReLU()])]


class DeclipHeads(nn.Module):
    """SimSiam's projector and predictor (arXiv 2011.10566), a linear layer from tokens to words, and the queue.

    Args:
        embed_dim: e. text_width: w. vocabulary: v.
        projector: d; three layers, a batch norm behind each. predictor: width between its two layers.
        queue: features in the queue.
    """

    def __init__(
        self, embed_dim: int, text_width: int, vocabulary: int, projector: int, predictor: int, queue: int
    ) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            *_layer(embed_dim, projector), *_layer(projector, projector), *_layer(projector, projector, last=True)
        )
        self.predictor = nn.Sequential(*_layer(projector, predictor), nn.Linear(predictor, projector))
        self.words = nn.Linear(text_width, vocabulary)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.zeros_(self.words.bias)
        self.queue = FeatureQueue(queue, embed_dim)


class DeclipTowers(TwoTower):
    """A `TwoTower` that learns from two views of each picture, and from its caption with masked tokens and another one.

    Called with `image` and `text` alone it is that `TwoTower`.

    Args:
        image, text, embed_dim, scores: see `TwoTower`.
        projector, predictor, queue: see `DeclipHeads`.
    """

    def __init__(
        self,
        image: nn.Module,
        text: TextTransformer,
        embed_dim: int,
        *,
        projector: int = 1024,
        predictor: int = 512,
        queue: int = 65536,
        **scores: float,
    ) -> None:
        super().__init__(image, text, embed_dim, **scores)
        text.token_embedding = MaskableEmbedding(text.token_embedding)
        text.output_tokens = True
        self.heads = DeclipHeads(embed_dim, text.width, text.vocab_size, projector, predictor, queue)

    def encode_text(self, text: Tensor) -> Tensor:
        return F.normalize(self.text(text)[0], dim=-1)

    def forward(  # type: ignore[override]  # more views, more outputs
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        image2: Tensor | None = None,
        text2: Tensor | None = None,
        text_labels: Tensor | None = None,
    ) -> TwoTowerOutput | DeclipOutput:
        """Training gives all five: pictures [b, 3, h, w], token ids [b, l], and `text_labels` [b, l]: of a masked token
        of `text` the word that was there, of others NOTHING.

        Each tower sees both views in one batch: its parameters are gathered once, and batch norms take their
        statistics over both (the authors' code makes two passes).
        """
        if image is None or text is None or image2 is None or text2 is None or text_labels is None:
            return super().forward(image, text)
        image_2be = self.image(torch.cat([image, image2]))
        text_2be, tokens_2blw = self.text(torch.cat([text, text2]))
        text_2be = F.normalize(text_2be, dim=-1)
        return joined(
            self.heads, image_2be, text_2be, masked_tokens(tokens_2blw, text_labels), self.bounded_logit_scale()
        )


def masked_tokens(tokens_2blw: Tensor, labels_bl: Tensor) -> Tensor:
    """Of the first texts' tokens those that are masked, [n, w]."""
    return tokens_2blw[: len(labels_bl)][labels_bl != NOTHING]


def joined(
    heads: DeclipHeads, image_2be: Tensor, text_2be: Tensor, tokens_nw: Tensor, logit_scale: Tensor
) -> DeclipOutput:
    """What follows the towers. `text_2be` has unit norm, `image_2be` not yet."""
    image_be, image2_be = F.normalize(image_2be, dim=-1).chunk(2)
    text_be, text2_be = text_2be.chunk(2)
    projected_2bd = heads.projector(image_2be)
    return DeclipOutput(
        image_be,
        image2_be,
        text_be,
        text2_be,
        logit_scale,
        projected_2bd,
        heads.predictor(projected_2bd),
        heads.words(tokens_nw),
    )
