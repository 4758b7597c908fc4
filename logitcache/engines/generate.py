"""Let the teacher answer prompts, greedily or by sampling, so that a student learns from the teacher's own text.

Each prompt has its own random numbers, which depend only on the seed and the prompt's tokens: so an answer doesn't
depend on the order of rows, or on the process that computes it.

Shape legend: B prompts of a batch, T tokens of an answer at most, V ids of the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from logitcache.data import TokenSequence
from logitcache.errors import ModelError
from logitcache.models import device_of
from logitcache.models.finding import tolerance
from logitcache.models.probe import difference, probe_ids, spread
from logitcache.utils.reasons import reason


class Generation(BaseModel):
    """How the teacher answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: Annotated[
        int, Field(ge=1, description="Longest answer in tokens, including its end-of-text token.")
    ] = 256
    temperature: Annotated[
        float, Field(ge=0, le=100, description="Temperature of sampled answers; 0 takes the most probable token.")
    ] = 0.0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="Sample from the smallest set of tokens that has this much probability.")
    ] = 1.0
    seed: Annotated[
        int, Field(ge=0, lt=2**63, description="Seed of sampled answers; another seed gives other answers.")
    ] = 0


@torch.inference_mode()
def heeds_padding(model: Any) -> bool:
    """True if a prompt that is padded on the left, with a mask, gets the same logits as without padding.

    Some models, such as recurrent ones, ignore the mask and read the padding as text.

    Raises:
        ModelError: it can't answer a prompt at all.
    """
    ids_T = probe_ids(model)
    prompts = [
        TokenSequence(row.cpu().numpy().astype(np.uint32), np.zeros(len(row), bool)) for row in (ids_T, ids_T[3:])
    ]

    def first_logits(batch: list[TokenSequence]) -> Tensor:
        ids_BL, mask_BL = (tensor.to(ids_T.device) for tensor in _pad_left(batch))
        settings = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        logits: Tensor = model.generate(ids_BL, attention_mask=mask_BL, pad_token_id=0, **settings).logits[0][-1]
        return logits

    try:
        alone = first_logits(prompts[1:])
    except torch.OutOfMemoryError:  # the caller may try fewer prompts
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(f"{type(model).__name__} can't answer prompts in transformers: {reason(error)}") from error
    try:
        together = first_logits(prompts)
    except torch.OutOfMemoryError:  # that says nothing about padding
        raise
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # it may still work without padding
    return difference(together, alone) <= tolerance(model) * spread(alone)


def answer(
    model: Any, prompts: Sequence[TokenSequence], generation: Generation, *, padded: bool = True
) -> list[TokenSequence]:
    """Prompts with their answers; the mask of an answer marks every position that predicts a token of it.

    Args:
        model: a transformers causal language model.
        prompts: their masks mark the last position, and other positions of the prompt if those need targets too.
        generation: how to answer.
        padded: False to answer one prompt at a time, without any padding.
    """
    if padded:
        return _answer_together(model, prompts, generation)
    return [answered for prompt in prompts for answered in _answer_together(model, [prompt], generation)]


@torch.inference_mode()
def _answer_together(model: Any, prompts: Sequence[TokenSequence], generation: Generation) -> list[TokenSequence]:
    """The answers to one batch."""
    from transformers import GenerationConfig, LogitsProcessorList

    ends = _end_tokens(model)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=generation.max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    input_ids_BL, mask_BL = _pad_left(prompts)
    device = device_of(model)
    processors = LogitsProcessorList()
    if generation.temperature:
        uniforms_BT = torch.from_numpy(np.stack([_uniforms(prompt.token_ids_L, generation) for prompt in prompts]))
        processors.append(_Draw(uniforms_BT, input_ids_BL.shape[1], generation.temperature, generation.top_p))
    output_BL = model.generate(
        input_ids_BL.to(device),
        attention_mask=mask_BL.to(device),
        generation_config=config,
        logits_processor=processors,
    )
    answers_BT = output_BL[:, input_ids_BL.shape[1] :].cpu().numpy()
    return [_join(prompt, _until_end(row_T, ends)) for prompt, row_T in zip(prompts, answers_BT, strict=True)]


class _Draw:
    """A logits processor that draws each row's token with the row's own random numbers, and rules out all others."""

    def __init__(self, uniforms_BT: Tensor, prompt_length: int, temperature: float, top_p: float) -> None:
        self._uniforms_BT = uniforms_BT
        self._prompt_length = prompt_length
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, input_ids_BL: Tensor, scores_BV: Tensor) -> Tensor:
        step = input_ids_BL.shape[1] - self._prompt_length
        probs_BV = (scores_BV.double() / self._temperature).softmax(-1)
        probs_BV, ids_BV = probs_BV.sort(stable=True, dim=-1, descending=True)
        kept_BV = probs_BV.cumsum(-1) - probs_BV < self._top_p
        cumulative_BV = probs_BV.where(kept_BV, 0.0).cumsum(-1)
        uniform_B1 = self._uniforms_BT[:, step, None].to(cumulative_BV) * cumulative_BV[:, -1:]
        chosen_B1 = torch.searchsorted(cumulative_BV, uniform_B1, right=True)
        chosen_B1 = chosen_B1.minimum(kept_BV.sum(-1, keepdim=True) - 1)
        return torch.full_like(scores_BV, -torch.inf).scatter(1, ids_BV.gather(1, chosen_B1), 0.0)


def _uniforms(token_ids_L: NDArray[np.uint32], generation: Generation) -> NDArray[np.float64]:
    """``[T]`` random numbers in [0, 1), which depend only on the seed and the prompt."""
    material = generation.seed.to_bytes(8, "little") + token_ids_L.astype("<u4").tobytes()
    key = int.from_bytes(hashlib.sha256(material).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(generation.max_new_tokens)


def _end_tokens(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = model.config.get_text_config().eos_token_id if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _pad_left(prompts: Sequence[TokenSequence]) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt.token_ids_L) for prompt in prompts)
    input_ids_BL = np.zeros((len(prompts), longest), dtype=np.int64)
    mask_BL = np.zeros_like(input_ids_BL)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.token_ids_L)
        input_ids_BL[row, start:] = prompt.token_ids_L
        mask_BL[row, start:] = 1
    return torch.from_numpy(input_ids_BL), torch.from_numpy(mask_BL)


def _until_end(answer_T: NDArray[np.int64], ends: list[int]) -> NDArray[np.uint32]:
    """Up to the first end-of-text token, that one included."""
    found_T = np.isin(answer_T, ends)
    stop = int(found_T.argmax()) + 1 if found_T.any() else len(answer_T)
    return answer_T[:stop].astype(np.uint32)


def _join(prompt: TokenSequence, answer_T: NDArray[np.uint32]) -> TokenSequence:
    answer_mask_T = np.arange(len(answer_T)) < len(answer_T) - 1
    return TokenSequence(
        np.concatenate([prompt.token_ids_L, answer_T]), np.concatenate([prompt.target_mask_L, answer_mask_T])
    )
