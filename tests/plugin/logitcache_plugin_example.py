"""A package that adds one loss and one engine to logitcache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import logitcache as lc
from logitcache.data import TokenSequence
from logitcache.engines import Capabilities, Engine, EngineFactory, EngineInfo, EngineSettings
from logitcache.losses import Loss, check_positive
from logitcache.models.teacher import load_config


@dataclass(frozen=True)
class Huber(Loss):
    """Huber's loss between the log-probs of the listed ids, averaged over them with the teacher's probabilities."""

    name: ClassVar[str] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.name, delta=self.delta)

    def per_token(self, logits_NV: Tensor, targets: lc.TopK, labels_N: Tensor | None) -> Tensor:
        student_NK = logits_NV.log_softmax(1).gather(1, targets.ids)
        away_NK = torch.nn.functional.huber_loss(student_NK, targets.logprobs, reduction="none", delta=self.delta)
        return (targets.logprobs.exp() * away_NK).sum(1)


class Uniform(Engine):
    """An engine that finds each token as probable as any other; it runs no model."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        config = load_config(settings.teacher).get_text_config()
        self._info = EngineInfo("uniform", config.vocab_size, "float32", Capabilities(reproducible=True))

    @property
    def info(self) -> EngineInfo:
        return self._info

    def score(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[Sequence[int], lc.TopK]]:
        for index, sequence in enumerate(sequences):
            logits_NV = torch.zeros(int(sequence.target_mask_L.sum()), self._info.vocab_size)
            yield [index], lc.TopK.from_logits(logits_NV, self._settings.top_k)


UNIFORM = EngineFactory(Uniform, Capabilities(reproducible=True))
