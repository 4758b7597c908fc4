"""Tiny configurations of every architecture, made from the default ones by rules about the names of their fields.

A rule says what a size becomes; lists with an entry a layer are cut to one layer of each kind. What the rules can't
know about an architecture stands in `_architectures_special.py`.
"""

from __future__ import annotations

import re
from typing import Any

from benchmarks._architectures_special import DECODERS, HIDDEN, SPECIAL, VARIANTS

VOCAB = 512
# Ids from here on are for images, sounds and other marks; the sweep's tokenizer has fewer entries, so no text has them.
FIRST_MARK = 440
HEADS, HEAD_DIM = 4, 32

# Ends the name of an architecture that is told to be a decoder.
DECODER = " (is_decoder)"
_TEXT_MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "unk_token_id": 3}
_MARK = re.compile(r"(token_id|token_index|token_idx|token_ids|_patch_id|^im_\w+_id)$")
_LAYERS = re.compile(
    r"^(num_(hidden|encoder|decoder|blocks|global)?_?layers|num_blocks|n_layers?|layers|depth|\w*(encoder|decoder)_layers"
    r"|num_layers|conf_num_hidden_layers|resampler_depth|num_lstm_layers|num_layers_per_stack)$"
)
# Lists with an entry a stage of a vision or audio part: what each is divided by.
_STAGES = {"depths": 16, "embed_dim": 4, "hidden_sizes": 8}
# Dictionaries that aren't parts with sizes of their own.
_AS_IT_IS = re.compile(r"rope|label|_dict$|_map$")
_NOISE = re.compile(r"drop|jitter|noise")
_LOGIT_SCALE = re.compile(r"logit.*(scal|mult)|lm_head_mult|output_mult")
# What a field becomes that says nothing, but that a model can't do without.
_MISSING = {"head_dim": HEAD_DIM, "num_experts_per_tok": 2, "n_routed_experts": 8, "n_shared_experts": 1}
# Field name → what a whole number above one becomes; the first that matches counts.
_SIZES: list[tuple[re.Pattern[str], int]] = [
    (re.compile(pattern), size)
    for pattern, size in [
        (r"^type_vocab_size$", 2),
        (r"^qk_head_dim$", 2 * HEAD_DIM),
        (r"^rotary_dim$", HEAD_DIM // 2),
        (r"^(first_k_dense_replace|num_dense_layers|num_kv_shared_layers)$", 1),
        (r"^(num_|n_)?(key_value|kv)_heads$|num_key_value_heads|num_query_groups|num_kv_heads|_kv_heads$", 2),
        (r"^linear_num_(key|value)_heads$|^linear_num_heads$", 4),
        (r"^mamba_n_heads$|^mamba_num_heads$|^n_mamba_heads$", 8),
        # Few heads would all be cut to zero at many tokens, and which of equal scores come first is left to chance.
        (r"^index(er)?_n_heads$", 32),
        (r"(^|_)(num|n)_?(attention_)?heads?$|attention_heads$|resampler_heads$|n_heads$", HEADS),
        (r"(^|_)head_dim$|^(d_head|kv_channels|attention_head_size|d_kv)$|dim_head$", HEAD_DIM),
        (r"^(mamba_d_head|mamba_head_dim|mamba_headdim)$", 32),
        (r"(kv_lora_rank|q_lora_rank|o_lora_rank|lora_rank|laurel_rank|adapter_rank|gated_norm_rank|hc_lowrank)$", 32),
        (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts)$", 8),
        (r"(num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts)$", 2),
        (r"^n_group$|^num_expert_group$", 2),
        (r"^topk_group$", 1),
        (r"^(sliding_window(_size)?|attention_chunk_size|local_attention|attention_window_size|index_topk)$", 8),
        (r"^(moe|expert|shared|dense|share)_?\w*(intermediate|ffn_hidden|expert_dim)\w*$", 64),
        (r"(intermediate|ffn|mlp)_?(hidden_)?(size|dim|multiple_size)$", 128),
        (r"^(n_inner|d_ff|d_inner|dff|dim_ff)$", 128),
        (r"byte_group_vocab$", 64),
        (r"^base_channels$", 32),
        (r"^num_filters$", 4),
        (r"^zero_expert_num$", 2),
        (r"vocab_size(_per_layer_input)?$", VOCAB),
        (r"(^|_)hidden_(size|dim)(_\w+)?$|^(d_model|n_embd|dim_model|embedding_size|lru_width)$", HIDDEN),
        (r"(^|_)(embed_dim|emb_dim|projection_dim|embed_proj_dim|output_proj_dims)$", HIDDEN),
        (r"^(max_position_embeddings|n_positions|n_ctx|model_max_length|max_seq_len|position_embedding_size)$", 256),
        (r"^(mamba_d_state|ssm_state_size|state_size)$", 16),
        (r"^(mamba_)?chunk_size$", 16),
    ]
]  # fmt: skip


def tiny_config(name: str) -> Any:
    """The defaults of an architecture's configuration class, made small.

    Args:
        name: as :func:`architectures` gives it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = model_type_of(name)
    special = SPECIAL.get(model_type, {})
    kind = CONFIG_MAPPING[model_type]
    fields = kind(**special.get("before", {})).to_dict()
    small = _shrink(fields, _Marks())
    _merge(small, special.get("after", {}))
    _merge(small, VARIANTS[name][1] if name in VARIANTS else {})
    if name.endswith(DECODER):
        small["is_decoder"] = True
    return kind.from_dict(small)


def model_type_of(name: str) -> str:
    """What the configuration calls the architecture."""
    return VARIANTS[name][0] if name in VARIANTS else name.removesuffix(DECODER)


class _Marks:
    """Numbers for the ids of images and other marks, the same for the same name."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def of(self, name: str) -> int:
        if name in _TEXT_MARKS:
            return _TEXT_MARKS[name]
        return self._given.setdefault(name, FIRST_MARK + len(self._given))


def _shrink(fields: dict[str, Any], marks: _Marks) -> dict[str, Any]:
    """The same fields, parts included, with small sizes."""
    layers = next((value for name, value in fields.items() if _LAYERS.match(name) and isinstance(value, int)), 0)
    kept = _one_of_each_kind(fields, layers)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "per_layer_config" and value:
            small[name] = {kept.index(int(i)): _shrink(own, marks) for i, own in value.items() if int(i) in kept}
        elif isinstance(value, dict):
            small[name] = dict(value) if _AS_IT_IS.search(name) else _shrink(value, marks)
        elif _MARK.search(name):
            small[name] = _mark(name, value, marks)
        elif isinstance(value, list) and name in _STAGES:
            small[name] = [max(1, each // _STAGES[name]) for each in value]
        elif isinstance(value, list) and layers > 1 and len(value) == layers:
            small[name] = [_number(name, value[index], fields) for index in kept]
        elif isinstance(value, int) and value > 1 and _LAYERS.match(name):
            small[name] = len(kept)
        elif value is None and name in _MISSING:
            small[name] = _MISSING[name]
        elif isinstance(value, float) and _NOISE.search(name):
            small[name] = 0.0
        elif value == 1.0 and _LOGIT_SCALE.search(name):
            small[name] = 0.5
        else:
            small[name] = _number(name, value, fields)
    _fit_sections(small)
    return small


def _fit_sections(fields: dict[str, Any]) -> None:
    """Rotary sections (time, height, width) that add up to half of the small heads."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    for part in (rope, *rope.values()):
        if isinstance(part, dict) and isinstance(part.get("mrope_section"), list):
            width = fields.get("head_dim") or HIDDEN // HEADS
            half, sections = int(width * part.get("partial_rotary_factor", 1.0)) // 2, part["mrope_section"]
            cut = [max(1, half * one // sum(sections)) for one in sections]
            part["mrope_section"] = [half - sum(cut[1:]), *cut[1:]]


def _mark(name: str, value: Any, marks: _Marks) -> Any:
    if isinstance(value, list):
        return [marks.of(name)] if name in _TEXT_MARKS else [marks.of(f"{name}{i}") for i in range(len(value))]
    return value if value is None or value < 0 else marks.of(name)


def _number(name: str, value: Any, fields: dict[str, Any]) -> Any:
    """A size made small; what isn't one stays."""
    if not isinstance(value, int) or isinstance(value, bool) or value <= 1:
        return value
    for pattern, size in _SIZES:
        if pattern.search(name):
            if size == 2 and "heads" in name and value == fields.get("num_attention_heads"):
                return HEADS
            return size if size == VOCAB else min(size, value)
    return value


def _one_of_each_kind(fields: dict[str, Any], layers: int) -> list[int]:
    """Which layers stay: the first of each kind, at least two."""
    lists = [value for value in fields.values() if isinstance(value, list) and layers > 1 and len(value) == layers]
    own = {int(index): value for index, value in (fields.get("per_layer_config") or {}).items()}
    first: dict[str, int] = {}
    for index in range(layers):
        first.setdefault(repr(([values[index] for values in lists], own.get(index))), index)
    kept = sorted(first.values())[:6]
    rest = (index for index in range(layers) if index not in kept)
    while len(kept) < 2 and (more := next(rest, None)) is not None:
        kept.append(more)
    return sorted(kept) or [0, 1]


def _merge(into: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def architectures() -> list[str]:
    """Every model type that predicts a next token, those that do so by a setting only, and some further variants."""
    from transformers.models.auto import modeling_auto as auto

    types = {
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        *auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    }
    return sorted(types | {name + DECODER for name in DECODERS} | VARIANTS.keys())
