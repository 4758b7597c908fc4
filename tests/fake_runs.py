"""Run a model on tensors without values, and record each operation.

An operation for which the host would have to wait for a GPU raises an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from logitcache.models import product

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "addmv", "mv"}


@dataclass
class Call:
    """One operation: its name without overload, and the dtypes and shapes of the tensors that it reads and gives."""

    name: str
    reads: list[tuple[torch.dtype, tuple[int, ...]]]
    gives: list[tuple[torch.dtype, tuple[int, ...]]]


@dataclass
class Log(TorchDispatchMode):
    """Every operation that torch carries out while this is entered."""

    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, given = (
            [(leaf.dtype, tuple(leaf.shape)) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
            for tree in ((args, kwargs), out)
        )
        self.calls.append(Call(func._schema.name.removeprefix("aten::"), read, given))
        return out

    def products_with(self, size: int) -> list[Call]:
        """Matrix products one of whose operands or results has a dimension of this size."""
        return [
            call
            for call in self.calls
            if call.name in PRODUCTS and any(size in shape for _, shape in (*call.reads, *call.gives))
        ]


def fake_weights(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace all weights and buffers by tensors without values; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                if id(value) not in made:
                    made[id(value)] = nn.Parameter(mode.from_tensor(value.detach()), value.requires_grad)
                part._parameters[name] = made[id(value)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else mode.from_tensor(buffer)


@contextmanager
def as_on_a_gpu(monkeypatch: Any) -> Iterator[tuple[FakeTensorMode, Log]]:
    """Tensors without values on the CPU, multiplied as a GPU multiplies them; the log holds what runs."""
    monkeypatch.setattr(product, "NATIVE", frozenset({"cpu"}))
    mode, log = FakeTensorMode(allow_non_fake_inputs=True), Log()
    yield mode, log
