"""The size of a model, counted without loading its weights: parameters, widths, and operations per token.

Shape legend: V vocabulary, D hidden width, I feed-forward width, H attention heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_top_k")


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model for the formulas of memory and time.

    Attributes:
        parameters, trained: numbers of all weights, and of those that are trained. Tied weights count once.
        weight_bytes, trained_bytes: their sizes in bytes.
        trained_tensors: how many tensors are trained.
        active: weights of matrices that a token is multiplied with, without embeddings and output layer; of
            experts, only the share that a token uses.
        active_trained: those of them that are trained.
        cast_bytes: the weights of linear layers, without the output layer, as 2-byte numbers.
        block_parameters: the largest block that a sharding wrapper gathers at once.
        outer_parameters: weights outside of all blocks, such as embeddings.
        vocab_size, width, inner, layers, heads: V, D, I (the sum over the experts that a token uses), layers, H.
        attention_width, key_width: width of all queries of a token, and of all its keys.
        norm_width: numbers of a token that the norms of one layer read, together; 2 D for most models.
    """

    parameters: int
    trained: int
    weight_bytes: int
    trained_bytes: int
    trained_tensors: int
    active: int
    active_trained: int
    cast_bytes: int
    block_parameters: int
    outer_parameters: int
    vocab_size: int
    width: int
    inner: int
    layers: int
    heads: int
    attention_width: int
    key_width: int
    norm_width: int


def sizes_of(model: Any) -> Sizes:
    """Count a model's weights. It may be on the meta device, and may be a PEFT model."""
    config = model.config.get_text_config()
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    vocab_size, width = (int(size) for size in embedding.weight.shape[:2])
    values = list(model.parameters())  # tied weights are listed once
    trained = [value for value in values if value.requires_grad]
    matrices = list(_matrices(model, output, _used_share(config)))
    modules = _blocks(model)
    blocks = [sum(value.numel() for value in block.parameters()) for block in modules]
    parameters = sum(value.numel() for value in values)
    heads = _first(config, ("num_attention_heads",)) or 1
    head_width = _first(config, ("head_dim",)) or width // heads
    queries, keys = heads * head_width, (_first(config, ("num_key_value_heads",)) or heads) * head_width
    return Sizes(
        parameters=parameters,
        trained=sum(value.numel() for value in trained),
        weight_bytes=sum(value.numel() * value.itemsize for value in values),
        trained_bytes=sum(value.numel() * value.itemsize for value in trained),
        trained_tensors=len(trained),
        active=round(sum(count for _, count, _ in matrices)),
        active_trained=round(sum(count for _, count, is_trained in matrices if is_trained)),
        cast_bytes=2 * sum(whole for whole, _, _ in matrices),
        block_parameters=max(blocks, default=parameters),
        outer_parameters=parameters - sum(blocks) if blocks else 0,
        vocab_size=vocab_size if output is None else int(output.weight.shape[0]),
        width=width,
        inner=inner_width(config, width),
        layers=_first(config, ("num_hidden_layers",)) or max(1, len(blocks)),
        heads=heads,
        attention_width=queries,
        key_width=keys,
        norm_width=max((_norm_width(block, width, queries, keys) for block in modules), default=2 * width),
    )


def inner_width(config: Any, width: int) -> int:
    """I: the feed-forward width of one token, the sum over the experts that it uses."""
    inner = _first(config, ("intermediate_size", "ffn_dim")) or 4 * width
    used = _first(config, _EXPERTS_USED)
    if not used or not _first(config, _EXPERT_COUNTS):
        return inner
    of_one = _first(config, ("moe_intermediate_size",)) or inner
    shared = _first(config, ("shared_expert_intermediate_size",)) or of_one * _first(config, ("n_shared_experts",))
    return of_one * used + shared


def _matrices(model: Any, output: Any, used_share: float) -> list[tuple[int, float, bool]]:
    """For each matrix: its weights, how many of them a token is multiplied with, and whether it is trained."""
    left_out = {
        id(value) for module in model.modules() if isinstance(module, nn.Embedding) for value in module.parameters()
    }
    left_out |= set() if output is None else {id(value) for value in output.parameters()}
    return [
        (value.numel(), value.numel() * (used_share if ".experts." in name else 1.0), value.requires_grad)
        for name, value in model.named_parameters()
        if value.dim() > 1 and id(value) not in left_out
    ]


def _blocks(model: Any) -> list[nn.Module]:
    """The blocks that FSDP gathers one after the other: modules of the model's ``_no_split_modules``."""
    classes = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in classes]
    inside = {id(inner) for module in found for inner in module.modules() if inner is not module}
    return [module for module in found if id(module) not in inside]


def _norm_width(block: nn.Module, width: int, queries: int, keys: int) -> int:
    """Numbers of one token that the norms of a block read. A query or key norm's weight is as wide as one head."""
    total = 0
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if "norm" not in type(module).__name__.lower() or weight is None or weight.dim() != 1:
            continue
        total += width if weight.numel() == width else queries if "q" in name.rpartition(".")[2] else keys
    return total


def _used_share(config: Any) -> float:
    """The share of all experts that a token uses; 1 for a model without experts."""
    used, count = _first(config, _EXPERTS_USED), _first(config, _EXPERT_COUNTS)
    return min(1.0, used / count) if used and count else 1.0


def _first(config: Any, names: tuple[str, ...]) -> int:
    """The first of some numbers that a configuration has, the largest where layers differ; 0 if it has none."""
    settings = config.to_dict()
    for name in names:
        # Not getattr: transformers refuses to give what differs between layers.
        value = settings.get(config.attribute_map.get(name, name), settings.get(name))
        numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]
        if max(numbers, default=0) > 0:
            return max(numbers)
    return 0
