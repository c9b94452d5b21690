"""Image-text pretraining with DeCLIP's losses (arXiv 2110.05208) over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from intern_kernels.contrastive_loss import info_nce
from intern_kernels.precision import at_least_fp32
from intern_zoo.declip import NOTHING, DeclipOutput, DeclipTowers
from intern_zoo.feature_queue import FeatureQueue
from intern_zoo.two_tower import TwoTower
from torch import Tensor

from intern_trainer.batch import Batch
from intern_trainer.collectives import all_gather, all_reduce
from intern_trainer.config.schema import Config
from intern_trainer.data import Views
from intern_trainer.data.text_augment import DeclipTexts
from intern_trainer.data.wordnet import WordNet
from intern_trainer.errors import ConfigError
from intern_trainer.observe.places import place
from intern_trainer.ranks import Ranks
from intern_trainer.tasks.base import Forward, Outputs
from intern_trainer.tasks.contrastive import ContrastiveTask
from intern_trainer.tasks.over_ranks import clip_loss
from intern_trainer.text import text_tokenizer


class DeclipTask(ContrastiveTask):
    """CLIP's task on two views of picture and caption each, with three more sources of supervision: pictures to
    neighbours of their captions, one view of a picture to the other, and masked words.
    """

    _input_names = ("image", "image2", "text", "text2", "text_labels")

    def __init__(self, config: Config, ranks: Ranks) -> None:
        super().__init__(config, ranks)
        self._queue: FeatureQueue | None = None

    @property
    def towers(self) -> Callable[..., TwoTower]:
        heads = self.config.loss.declip
        return partial(DeclipTowers, projector=heads.projector, predictor=heads.predictor, queue=heads.queue)

    @property
    def views(self) -> Views:
        words, terms = text_tokenizer(self.config.model.text), self.config.loss.declip
        wordnet = _wordnet(terms.synonyms) if terms.synonyms else None
        texts = DeclipTexts(words, words.sot_token_id, words.eot_token_id, words.vocab_size, terms.mask_rate, wordnet)
        return Views(images=2, texts=texts, captions=2)

    def forward(self, model: Forward, batch: Batch) -> Outputs:
        """Features of the views, [b, e]; `logit_scale` [1]; of each sample, [b]: `simsiam`, its loss; `words`, the sum
        of its masked words' cross entropies; `masked`, how many there are.
        """
        out: DeclipOutput = model(**self.inputs(batch))
        towers: Any = getattr(model, "module", model)  # an engine's
        self._queue = towers.heads.queue  # the module, not its buffers, which engines replace
        words_b, masked_b = _guesses(out.word_logits_nv, batch.tensors["text_labels"])
        return {
            "image_features": out.image_features,
            "image2_features": out.image2_features,
            "text_features": out.text_features,
            "text2_features": out.text2_features,
            "logit_scale": out.logit_scale,
            "simsiam": _simsiam(out.predicted_2bd, out.projected_2bd),
            "words": words_b,
            "masked": masked_b,
        }

    @place("loss")
    def loss(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of `loss.declip`'s terms; the mean of each over ranks is that of the global micro-batch."""
        assert self._queue is not None, "loss before the first forward pass"
        images = (outputs["image_features"], outputs["image2_features"])
        texts = (outputs["text_features"], outputs["text2_features"])
        scale, block = outputs["logit_scale"], self.config.loss.block
        first = self.ranks.rank * len(images[0])
        group = self.ranks.group
        keys = [all_gather(x, group) for x in texts]
        neighbours = [all_gather(self._queue.nearest(x.detach()), group) for x in texts]
        for key in reversed(keys):  # the newest last: the captions as they are
            self._queue.push(key.detach())
        pairs = [clip_loss(image, key, scale, self.ranks, block) for image, key in product(images, keys)]
        near = [info_nce(image, key, scale, first, block)[0] for image, key in product(images, neighbours)]
        masked = all_reduce(outputs["masked"].detach().sum(), group)
        terms = {
            "clip": torch.stack([loss for loss, _ in pairs]).mean(),
            "nearest": torch.stack(near).mean(),
            "simsiam": outputs["simsiam"].mean(),
            "mlm": outputs["words"].sum() * self.ranks.world_size / masked.clamp_min(1),
        }
        weights = self.config.loss.declip
        loss = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        return loss, {
            **{name: term.detach() for name, term in terms.items()},
            "batch_accuracy": pairs[0][1] / len(images[0]),
            "logit_scale": scale.detach().squeeze(),
        }


def _wordnet(folder: Path) -> WordNet:
    found = WordNet(folder)
    missing = found.missing()
    if missing:
        raise ConfigError(
            f"loss.declip.synonyms is {folder}, which holds no {missing[0]}",
            "it is a folder of WordNet's database files, on every machine of the run",
            "apt install wordnet-base and loss.declip.synonyms=/usr/share/wordnet, or leave it out",
        )
    return found


def _simsiam(predicted_2bd: Tensor, projected_2bd: Tensor) -> Tensor:
    """Of each sample, how unlike the predictions of its two views are to the other view's projection, [b], from -1
    (alike) to 1; the projections are targets (Chen and He, arXiv 2011.10566).
    """
    others_2bd = projected_2bd.detach().roll(len(projected_2bd) // 2, dims=0)
    return -F.cosine_similarity(at_least_fp32(predicted_2bd), at_least_fp32(others_2bd)).view(2, -1).mean(dim=0)


def _guesses(word_logits_nv: Tensor, labels_bl: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross entropies of each row's masked words, [b], and how many it has, [b]."""
    row_n, place_n = (labels_bl != NOTHING).nonzero(as_tuple=True)
    loss_n = F.cross_entropy(at_least_fp32(word_logits_nv), labels_bl[row_n, place_n], reduction="none")
    words_b = loss_n.new_zeros(len(labels_bl)).index_add(0, row_n, loss_n)
    return words_b, loss_n.new_zeros(len(labels_bl)).index_add(0, row_n, torch.ones_like(loss_n))
