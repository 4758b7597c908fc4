"""What an engine is: it reads token ids with a teacher, and gives the teacher's top-k distributions.

Stage 1 knows engines by this module only. How an engine groups sequences, which devices it uses and what it does when
memory runs out are its own affair.
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
from logitcache.targets.topk import TopK


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beyond top-k log-probs with their residual mass.

    Attributes:
        statistics: give the log-partition and the standard deviation of the logits.
        tail_samples: draw entries from all ids below the top.
        candidates: run a reference model too, and keep the ids that it prefers.
        generation: answer prompts.
        tensor_parallel: run in several processes that share the teacher's weights.
        reproducible: the same sequences in the same order give the same bytes, on the same machine and software.
    """

    statistics: bool = False
    tail_samples: bool = False
    candidates: bool = False
    generation: bool = False
    tensor_parallel: bool = False
    reproducible: bool = False


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says of itself once it is open.

    Attributes:
        name: the name that it is registered under; the manifest of a cache has it.
        vocab_size: V, the length of the teacher's logit vectors.
        dtype: of the teacher's arithmetic, as torch names it: ``float32``, ``bfloat16`` …
        can: what it can do.
    """

    name: str
    vocab_size: int
    dtype: str
    can: Capabilities


@dataclass(frozen=True)
class EngineSettings:
    """What is asked of an engine, for as long as it is open.

    Attributes:
        teacher: the files of the model to run.
        top_k: K, entries for each position.
        device: where to compute.
        dtype: of the arithmetic.
        batch_tokens: tokens of one forward pass at most, padding included; a longer sequence runs alone.
        tail_samples: how many of the K entries are drawn from all ids below the others, the same ones for the same
            sequence.
        reference: the files of another model over the same tokens, whose preferred ids are kept; None without one.
        candidates: how many of the K entries those are.
        statistics: also give the log-partition and the logits' standard deviation.
        device_map: how to place the teacher on several devices, as transformers takes it.
        tensor_parallel: this process holds a part of each layer, and all processes run the same passes.
        attention: the implementation of attention, as transformers names it; None is its default.
        trust_remote_code: run code that comes with the models.
    """

    teacher: TeacherFiles
    top_k: int
    device: torch.device
    dtype: torch.dtype
    batch_tokens: int
    tail_samples: int = 0
    reference: TeacherFiles | None = None
    candidates: int = 0
    statistics: bool = False
    device_map: str | None = None
    tensor_parallel: bool = False
    attention: str | None = None
    trust_remote_code: bool = False


class Engine(Protocol):
    """An open engine. Inherit from this class to get the answers of an engine that can do no more than score."""

    @property
    def info(self) -> EngineInfo:
        """What it is, and what it can give."""
        ...

    def score(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[Sequence[int], TopK]]:
        """The teacher's distributions at every position that the sequences' masks mark.

        Returns:
            Pairs ``(which, targets)``: indices into ``sequences``, and ``[N, K]`` targets on the CPU of all their
            marked positions, sequence after sequence in the order of ``which``. Every index comes once, in any
            grouping and order. An engine should compute the next group while the last one is copied.

        Raises:
            ModelError: the teacher can't read such sequences, or there is no memory for one.
        """
        ...

    def answer(
        self, prompts: Sequence[TokenSequence], generation: Generation
    ) -> Iterator[tuple[Sequence[int], Sequence[TokenSequence]]]:
        """Let the teacher answer prompts.

        Returns:
            Pairs ``(which, answered)``: indices into ``prompts``, and those prompts with their answers. Every position
            from a prompt's last one to the last but one is marked. Every index comes once, in any grouping and order.

        Raises:
            ModelError: the teacher can't answer such prompts, or the engine can't answer any.
        """
        raise ModelError(f"the engine {self.info.name} can't answer prompts: leave out --generate, or take another")

    def k_for_mass(self, sequence: TokenSequence, mass: float) -> int | None:
        """The K whose top entries hold ``mass`` of the probability at some of the sequence's positions, on average.

        For a warning only; None where the engine can't say.
        """
        return None

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        """Tokens that it computes for sequences of these lengths, padding included. For an estimate only."""
        return sum(lengths)


@dataclass(frozen=True)
class EngineFactory:
    """How an engine is made; what a package registers.

    Attributes:
        open: loads the teacher. Settings that ``can`` rules out are refused before it is called.
        can: what the engines that it makes can do at best; each says for itself what it can.
    """

    open: Callable[[EngineSettings], Engine]
    can: Capabilities = Capabilities()
