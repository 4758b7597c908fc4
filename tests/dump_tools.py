"""Shared by tests of dumps: settings of a tiny dump, a check of all its rows, and a check of errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import logitcache as lc
from logitcache.dump import writer
from logitcache.errors import StorageError

WORDS = "the state of the union is strong and its people are free " * 20
TINY = {"max_length": 64, "shard_tokens": 256, "batch_tokens": 256, "min_mass": 0.0, "top_k": 16}


@torch.no_grad()
def check_every_row(cache: lc.Cache, teacher: Path | str, noise: float, dtype: torch.dtype = torch.float32) -> None:
    """The teacher's log-probs for one sequence at a time, against the cache.

    ``noise`` is what batching may change in nats: other kernels for other shapes.
    """
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=dtype).eval()
    bound = cache.manifest.encoding.bound + noise
    for sequence in cache:
        logits = model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions].float()
        own = logits.log_softmax(1)
        stored = sequence.targets
        assert torch.equal(sequence.labels, sequence.token_ids[sequence.positions + 1])
        assert torch.equal(sequence.positions, sequence.target_mask.nonzero()[:, 0])
        assert (own.gather(1, stored.ids) - stored.logprobs).abs().max() <= bound
        # The ranked ids are the top: nothing left out is larger than what was kept, but for noise.
        outside = own.scatter(1, stored.ids, -torch.inf)
        least = own.gather(1, stored.ids[:, : cache.ranked]).min(1).values
        assert (outside.max(1).values <= least + 2 * noise).all()
        assert (outside.logsumexp(1) - stored.residual_logprob).abs().max() <= bound


def refused(dump: Any, out: Path, error: type[Exception], match: str, **settings: Any) -> None:
    """``dump`` ends with one clear error, and nothing in ``out`` looks like a cache."""
    with pytest.raises(error, match=match) as caught:
        dump(out=out, **settings)
    assert len(str(caught.value).splitlines()) <= 2
    assert not (out / "manifest.json").exists()
    with pytest.raises(lc.LogitCacheError):
        lc.open(out)


def fail_after(calls: int, real: Any = writer.publish_shard) -> Any:
    """``real``, which fails from a number of calls on as a full disk would."""
    made = 0

    def fake(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        if made > calls:
            raise StorageError("no more")
        return real(*args, **kwargs)

    return fake
