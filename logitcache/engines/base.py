"""The interface of an engine: it runs a teacher on token ids, and gives the teacher's top-k distributions.

Stage 1 uses engines only through this module. Each engine decides itself how it groups sequences, which devices it
uses, and what it does when there is too little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from logitcache.data import TokenSequence
from logitcache.engines.generate import Generation
from logitcache.errors import ModelError
from logitcache.models.identity import TeacherFiles
from logitcache.targets.beyond import ALL_RANKED, Beyond
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do besides top-k log-probs with their residual mass.

    Attributes:
        statistics: give the log-partition and the standard deviation of the logits.
        tail_samples: draw entries from all ids below the top.
        candidates: also run a reference model, and keep the ids with its largest logits.
        generation: generate answers to prompts.
        tensor_parallel: run in several processes that each hold a part of the teacher's weights.
        reproducible: the same sequences in the same order give the same bytes, on the same machine with the same
            software.
    """

    statistics: bool = False
    tail_samples: bool = False
    candidates: bool = False
    generation: bool = False
    tensor_parallel: bool = False
    reproducible: bool = False


@dataclass(frozen=True)
class EngineInfo:
    """Facts about an open engine.

    Attributes:
        name: the name that it is registered under, which the manifest of a cache records.
        vocab_size: V, the length of the teacher's logit vectors.
        dtype: dtype of the teacher's arithmetic, as torch names it: ``float32``, ``bfloat16`` …
        can: what it can do.
        head_dtype: dtype of the logits, where it is another one.
    """

    name: str
    vocab_size: int
    dtype: str
    can: Capabilities
    head_dtype: str | None = None


@dataclass(frozen=True)
class EngineSettings:
    """The settings of an engine.

    Attributes:
        teacher: the files of the model to run.
        top_k: K, entries for each position.
        device: where to compute.
        dtype: dtype of the arithmetic.
        batch_tokens: the most tokens of one forward pass, padding included; a longer sequence runs alone.
        beyond: how many of the K entries are a sample of the tail, drawn from all ids below the others (equal sequences
            get equal ones), or candidates.
        reference: the files of another model with the same token ids, which chooses the candidates; None without one.
        statistics: also give the log-partition and the logits' standard deviation.
        device_map: how to place the teacher on several devices, as in transformers.
        tensor_parallel: this process holds a part of each layer, and all processes run the same forward passes.
        attention: the implementation of attention, as transformers names it; None is its default.
        trust_remote_code: run code that comes with the models.
        wide_head: give logits in float32, also if the weights are in half precision.
    """

    teacher: TeacherFiles
    top_k: int
    device: torch.device
    dtype: torch.dtype
    batch_tokens: int
    beyond: Beyond = ALL_RANKED
    reference: TeacherFiles | None = None
    statistics: bool = False
    device_map: str | None = None
    tensor_parallel: bool = False
    attention: str | None = None
    trust_remote_code: bool = False
    wide_head: bool = True


class Engine(Protocol):
    """An open engine. A class that inherits from this one needs only ``info`` and ``score``."""

    @property
    def info(self) -> EngineInfo:
        """Facts about this engine."""
        ...

    def score(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[Sequence[int], TopK]]:
        """The teacher's distributions at every position that the sequences' masks mark.

        Returns:
            Pairs ``(which, targets)``: indices into ``sequences``, and ``[N, K]`` targets on the CPU of all their
            marked positions, sequence after sequence in the order of ``which``. Every index is given once, in any
            grouping and order. An engine should compute the next group while the last one is copied.

        Raises:
            ModelError: the teacher can't run such sequences, or there is too little memory for a single one.
        """
        ...

    def answer(
        self, prompts: Sequence[TokenSequence], generation: Generation
    ) -> Iterator[tuple[Sequence[int], Sequence[TokenSequence]]]:
        """Let the teacher generate answers to prompts.

        Returns:
            Pairs ``(which, answered)``: indices into ``prompts``, and those prompts with their answers. Every position
            from a prompt's last one to the answer's last but one is marked. Every index is given once, in any grouping
            and order.

        Raises:
            ModelError: the teacher can't answer such prompts, or the engine can't answer any.
        """
        raise ModelError(
            f"the engine {self.info.name} can't answer prompts: leave out --generate, or use another --engine"
        )

    def k_for_mass(self, sequence: TokenSequence, mass: float) -> int | None:
        """The K whose top entries hold ``mass`` of the probability on average, over some positions of the sequence.

        It is used for a warning only; None if the engine doesn't know.
        """
        return None

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        """Tokens that it computes for sequences of these lengths, padding included; used for an estimate only."""
        return sum(lengths)


@dataclass(frozen=True)
class EngineFactory:
    """Makes an engine; a package registers one of these.

    Attributes:
        open: loads the teacher. Settings that ``can`` rules out are refused before it is called.
        can: what its engines can do at most; the ``info`` of an engine says what that engine can do.
    """

    open: Callable[[EngineSettings], Engine]
    can: Capabilities = Capabilities()
