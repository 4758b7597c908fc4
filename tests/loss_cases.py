"""Random inputs for losses and metrics."""

import torch
from torch import Tensor

import logitcache as lc


def random_case(
    n: int = 6, v: int = 40, k: int = 40, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, lc.TopK, Tensor]:
    """Student logits ``[N, V]``, a teacher's top k with statistics, and labels of which the second is ignored."""
    generator = torch.Generator().manual_seed(n * 1000 + v)
    student = torch.randn(n, v, generator=generator, dtype=dtype) * 2
    targets = lc.TopK.from_logits(torch.randn(n, v, generator=generator, dtype=dtype) * 2, k, statistics=True)
    labels = torch.randint(0, v, (n,), generator=generator)
    labels[1] = -100
    return student, targets, labels
