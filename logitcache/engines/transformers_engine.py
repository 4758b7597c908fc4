"""The transformers engine: it computes top-k targets from token ids, without ``[tokens, vocabulary]`` in memory.

Shape legend: B sequences of a batch, L tokens of the longest, N positions that have targets, C of them in one chunk,
D hidden width, E that of the reference, V and W vocabularies, K entries kept.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data import TokenSequence
from logitcache.engines.base import Capabilities, Engine, EngineInfo, EngineSettings
from logitcache.engines.batch_size import CPU_TOKENS
from logitcache.engines.batches import cut_into_batches, pad, padded_tokens
from logitcache.engines.generate import Generation, answer, heeds_padding
from logitcache.engines.halving import in_halves
from logitcache.engines.host import HostTopK, to_host
from logitcache.engines.output_layer import OutputLayer
from logitcache.errors import LogitCacheWarning, ModelError
from logitcache.models import Head, check_language_model, device_of
from logitcache.models.teacher import load_model
from logitcache.targets.beyond import ALL_RANKED, Beyond
from logitcache.targets.topk import TopK
from logitcache.utils.device import DEVICES, Devices

Result = TypeVar("Result")
NAME = "transformers"
#: What it can do with every model.
CAN = Capabilities(
    statistics=True, tail_samples=True, candidates=True, generation=True, tensor_parallel=True, reproducible=True
)


def open_transformers(settings: EngineSettings, devices: Devices = DEVICES) -> TransformersEngine:
    """The teacher's weights, and those of the reference if there is one. Their device becomes the current one.

    Raises:
        ModelError: the files don't make a causal language model, or don't fit on the device.
    """
    devices.make_current(settings.device)
    load = partial(
        load_model,
        dtype=settings.dtype,
        attention=settings.attention,
        trust_remote_code=settings.trust_remote_code,
    )
    model = load(
        settings.teacher,
        device=settings.device,
        device_map=settings.device_map,
        tensor_parallel=settings.tensor_parallel,
    )
    # A reference is small: each process of a split teacher holds the whole of it.
    reference = None
    if settings.reference is not None:
        reference = load(settings.reference, device=device_of(model))
    return TransformersEngine(
        model,
        top_k=settings.top_k,
        batch_tokens=settings.batch_tokens,
        beyond=settings.beyond,
        reference=reference,
        statistics=settings.statistics,
        wide_head=settings.wide_head,
        halve=not settings.tensor_parallel,
        devices=devices,
    )


class TransformersEngine(Engine):
    """A causal language model of transformers, in this process.

    Args:
        model: from :func:`logitcache.models.teacher.load_model`.
        top_k: K.
        batch_tokens: tokens of one forward pass, padding included.
        beyond: how many of the K are a sample of the tail, which is the same for equal sequences, or candidates.
        reference: another loaded model with the same token ids, which chooses the candidates.
        statistics: also give the log-partition and the logits' standard deviation.
        wide_head: give logits in float32, also if the weights are in half precision.
        halve: try a batch in two halves when memory runs out. Not where other processes must run the same passes.
        devices: the machine's.

    Raises:
        ModelError: the model does not predict the next token from those before, or has fewer ids than K.
    """

    head: Head

    def __init__(
        self,
        model: Any,
        *,
        top_k: int,
        batch_tokens: int = CPU_TOKENS,
        beyond: Beyond = ALL_RANKED,
        reference: Any | None = None,
        statistics: bool = False,
        wide_head: bool = True,
        halve: bool = True,
        devices: Devices = DEVICES,
    ) -> None:
        self._model = model
        self._devices = devices
        self.head = check_language_model(model, "teacher", _name(model))
        self._batch_tokens = batch_tokens
        self._reference = None if reference is None else check_language_model(reference, "reference", _name(reference))
        heads = [self.head] if self._reference is None else [self.head, self._reference]
        costs = [head.cost for head in heads if head.cost]
        self._one_by_one = bool(costs)
        # A row longer than this would change the rotary frequencies of the shorter rows of its batch.
        self._turn = min((head.turn for head in heads if head.turn is not None), default=sys.maxsize)
        if costs:
            warnings.warn(f"teacher {_name(model)}: {costs[0]}", LogitCacheWarning, stacklevel=2)
        self._halve = halve
        self._heeds_padding: bool | None = None  # checked when the first prompts are answered
        self._device = device_of(model)
        vocab_size = self.head.vocab_size
        if top_k > vocab_size:
            raise ModelError(f"top-k {top_k} is more than the teacher's vocabulary of {vocab_size} ids")
        self.output = OutputLayer(
            self.head,
            top_k,
            beyond,
            self._reference,
            statistics=statistics,
            wide=wide_head,
            device=self._device,
        )
        dtype, widens = str(model.dtype).removeprefix("torch."), self.output.widens
        self._info = EngineInfo(NAME, vocab_size, dtype, CAN, "float32" if widens else None)
        if wide_head and not widens and model.dtype.itemsize < 4:
            warnings.warn(
                f"teacher {_name(model)}: its logits stay in {dtype}, because its output layer is not a plain matrix "
                "on one device. Log-probs are off by up to 1/16 nat",
                LogitCacheWarning,
                stacklevel=2,
            )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def score(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[Sequence[int], TopK]]:
        """See :meth:`Engine.score`. A batch is given after the next one has been started."""
        started: tuple[list[int], HostTopK] | None = None
        for which in self._batches(sequences):
            before, started = started, (which, self._start([sequences[s] for s in which]))
            if before is not None:
                yield before[0], before[1].wait()
        if started is not None:
            yield started[0], started[1].wait()

    def answer(
        self, prompts: Sequence[TokenSequence], generation: Generation
    ) -> Iterator[tuple[Sequence[int], Sequence[TokenSequence]]]:
        """See :meth:`Engine.answer`. A batch that doesn't fit in memory is answered in two halves."""
        for which in self._batches(prompts, generation.max_new_tokens):
            yield which, self._answer([prompts[s] for s in which], generation)

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        return padded_tokens(lengths, self._batch_tokens)

    def _batches(self, sequences: Sequence[TokenSequence], reserved: int = 0) -> list[list[int]]:
        return cut_into_batches([len(sequence.token_ids_L) + reserved for sequence in sequences], self._batch_tokens)

    @torch.inference_mode()
    def _start(self, batch: Sequence[TokenSequence]) -> HostTopK:
        """Targets of every position that the sequences' masks mark, sequence after sequence, on their way to the host.

        Shorter sequences are padded on the right: attention is causal, so no real token sees the padding, and no
        attention mask is needed.

        When memory runs out the batch is computed in two halves. Kernels may round differently for another batch
        size, so the last bits of values can differ from a run with enough memory.
        """
        parts = self._in_halves(batch, lambda part: to_host(self._targets(part), self._devices))
        return parts[0] if len(parts) == 1 else HostTopK(TopK.cat([part.wait() for part in parts]))

    def _answer(self, prompts: Sequence[TokenSequence], generation: Generation) -> list[TokenSequence]:
        """One batch of prompts with their answers.

        Raises:
            ModelError: there is too little memory for a single prompt.
        """

        def run(part: Sequence[TokenSequence]) -> list[TokenSequence]:
            if self._heeds_padding is None:
                self._heeds_padding = heeds_padding(self._model)
            return answer(self._model, part, generation, padded=self._heeds_padding)

        parts = self._in_halves(prompts, run, ", or --max-new-tokens")
        return [answered for part in parts for answered in part]

    def _in_halves(
        self, batch: Sequence[TokenSequence], run: Callable[[Sequence[TokenSequence]], Result], advice: str = ""
    ) -> list[Result]:
        return in_halves(
            batch,
            run,
            halve=self._halve,
            empty_cache=lambda: self._devices.empty_cache(self._device),
            refusal=lambda part: _too_large(part) + advice,
        )

    @torch.inference_mode()
    def k_for_mass(self, sequence: TokenSequence, mass: float) -> int:
        """See :meth:`Engine.k_for_mass`; it uses at most 128 positions."""
        input_ids_BL, index_N = pad([sequence])
        some = index_N[:: max(1, len(index_N) // 128)][:128]
        hidden_ND = self.head.hidden_at(input_ids_BL.to(self._device), some.to(self._device))
        covered_V = torch.zeros(self.head.vocab_size, dtype=torch.float64, device=self._device)
        for hidden_CD in torch.split(hidden_ND, self.output.chunk_rows):
            probs_CV = self.head.logits(hidden_CD).float().softmax(1)
            covered_V += probs_CV.sort(1, descending=True).values.cumsum(1, dtype=torch.float64).sum(0).to(self._device)
        return int((covered_V / len(some) < mass).sum()) + 1

    def _targets(self, batch: Sequence[TokenSequence]) -> TopK:
        """Targets of a batch, on the device that computed them."""
        apart = self._one_by_one or max(len(sequence.token_ids_L) for sequence in batch) > self._turn
        parts = [[sequence] for sequence in batch] if apart else [batch]
        return TopK.cat([self._run(part) for part in parts])

    def _run(self, batch: Sequence[TokenSequence]) -> TopK:
        hidden_ND = self._hidden(self.head, batch)
        liked_NE = None if self._reference is None else self._hidden(self._reference, batch)
        draws_N = torch.from_numpy(np.concatenate([_draws(sequence) for sequence in batch])).to(hidden_ND.device)
        return self.output.targets(hidden_ND, draws_N, liked_NE)

    def _hidden(self, head: Head, batch: Sequence[TokenSequence]) -> Tensor:
        """Last hidden states ``[N, D]`` at the positions that have targets."""
        input_ids_BL, index_N = pad(batch)
        return head.hidden_at(input_ids_BL.to(self._device), index_N.to(self._device))


def _draws(sequence: TokenSequence) -> NDArray[np.float64]:
    """Random numbers for drawing ids, one for each target; equal sequences have equal ones."""
    tokens = np.ascontiguousarray(sequence.token_ids_L, "<u4").tobytes()
    key = int.from_bytes(hashlib.sha256(tokens).digest()[:16], "little")
    drawn_L = np.random.Generator(np.random.Philox(key=key)).random(len(sequence.token_ids_L))
    return drawn_L[np.flatnonzero(sequence.target_mask_L)]


def _name(model: Any) -> str:
    """The place that the model was loaded from, for messages."""
    return str(getattr(model.config, "name_or_path", "") or type(model).__name__)


def _too_large(batch: Sequence[TokenSequence]) -> str:
    longest = max(len(sequence.token_ids_L) for sequence in batch)
    if len(batch) == 1:
        return f"out of memory on a single sequence of {longest} tokens: lower --max-length"
    return f"out of memory on {len(batch)} sequences of up to {longest} tokens: lower --batch-tokens or --max-length"
