"""What the rules of `_architectures_configs.py` can't know: settings of single architectures.

``before`` is given to the configuration's class, ``after`` replaces fields of the small configuration.
"""

from __future__ import annotations

from typing import Any

#: The width of every tiny model.
HIDDEN = 128

_KINDS = ["linear_attention", "full_attention"]


def _text(**fields: Any) -> dict[str, Any]:
    return {"after": {"text_config": fields}}


def _sections(*sizes: int) -> dict[str, Any]:
    """Rotary sections of an image-text model whose configuration leaves them to the code."""
    return _text(rope_parameters={"mrope_section": list(sizes)})


_INDEXED = {
    "indexer_n_heads": 32,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 32,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "hc_lowrank": 32,
    "ngram_vocab_size_base": 1000,
    "split_ngram_parts": 1,
    "ple_embed_dim": 64,
}
_TALKER = {"spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 64}}
_HALF_TURNED = {
    "head_dim": 64,
    "rope_parameters": {
        "indexed_attention": {"partial_rotary_factor": 0.5},
        "sliding_attention": {"partial_rotary_factor": 0.5},
    },
}
# Rows of more than 32 tokens turn at other frequencies than shorter ones.
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 16,
    "long_factor": [4.0] * 16,
}
_PLAIN_ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
# Two layers of each kind, since the second of a kind shares weights with the first.
_ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "attention_hidden_size": 256,
    "attention_head_dim": 64,
}

SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"after": {"attn_layer_indices": [1], "mamba_d_head": 32}},
    "chameleon": {"before": {"vocabulary_map": {"<image>": 440, "IMGIMGA": 441}}},
    "cohere_compass": _text(rope_parameters=_PLAIN_ROPE),
    "cohere_compass_text": {"after": {"rope_parameters": _PLAIN_ROPE}},
    "dbrx": {"after": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}}},
    "deepseek_ocr2": _text(mlp_layer_types=["dense", "sparse"]),
    "diffusion_gemma": _text(num_experts=8, top_k_experts=2, moe_intermediate_size=64),
    "dots3_note": {
        "after": {
            "text_config": _HALF_TURNED,
            "vision_config": {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
            "audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
        }
    },
    "dots3_note_text": {"after": _HALF_TURNED},
    "emu3": {
        "before": {"vocabulary_map": {"<image>": 440, "<|extra_200|>": 441, "<|visual token 000000|>": 442}},
    },
    "ernie4_5_vl_moe": _sections(6, 6, 4),
    "falcon_h1": {"after": {"mamba_d_ssm": 256, "mamba_d_head": 32}},
    "fun_asr_nano": {"after": {"adaptor_config": {"intermediate_size": 32}}},
    "glm46v": _sections(4, 6, 6),
    "glm4v": _sections(4, 6, 6),
    "glm4v_moe": _sections(2, 3, 3),
    "glm5_next": _text(index_kpool=4),
    "glm_ocr": _sections(4, 6, 6),
    "glmga": _sections(4, 6, 6),
    "granite4_vision": {"before": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "4/8"}},
    "granitemoehybrid": {"after": {"layer_types": _KINDS, "mamba_d_head": 32}},
    "hunyuan_vl": _sections(4, 4, 4, 4),
    "jamba": {"after": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}},
    "kyutai_speech_to_text": {"after": {"codec_config": {"upsample_groups": 32}}},
    "lfm2_moe": {"after": {"layer_types": ["conv", "full_attention"]}},
    "mamba2": {"after": {"num_heads": 8}},
    "mistral4": {"after": {"rope_parameters": {"partial_rotary_factor": 0.5}, "head_dim": 64}},
    "molmo2": {"after": {"adapter_config": {"vision_feature_layer": [1, 0]}}},
    "nemotron": {"before": {"num_key_value_heads": 8}},
    "paddleocr_vl": _sections(4, 6, 6),
    "qwen2_5_omni_thinker": _sections(4, 6, 6),
    "qwen2_5_vl": _sections(4, 6, 6),
    "qwen2_vl": _sections(4, 6, 6),
    "qwen4_exp": _text(**_INDEXED),
    "qwen4_exp_text": {"after": _INDEXED},
    "qwen3_omni_moe": {"after": {"talker_config": _TALKER}},
    "reformer": {
        "before": {"is_decoder": True, "attn_layers": ["local", "lsh"]},
        "after": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [64, 64], "num_buckets": 4, "hash_seed": 0},
    },
    "step3p7": _text(sliding_window=8),
    "xlstm": {"after": {"embedding_dim": 128}},
    "xmod": {"before": {"default_language": "en_XX"}},
    "zamba": {"after": {**_ZAMBA, "n_mamba_heads": 2, "mamba_dt_rank": 8}},
    "zamba2": {"after": {**_ZAMBA, "hybrid_layer_ids": [1, 3], "mamba_headdim": 32}},
}

# Architectures that are decoders only if their configuration says so.
DECODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip

# Further settings of an architecture that change how it reads or answers: name → (model type, fields).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3_text (bidirectional)": ("gemma3_text", {"use_bidirectional_attention": True}),
    "gemma2 (capped)": ("gemma2", {"final_logit_softcapping": 2.0}),
    "inkling_text (unpadded vocabulary)": ("inkling_text", {"unpadded_vocab_size": 500}),
    "mistral (no window)": ("mistral", {"sliding_window": None}),
    # Students of it are refused: rows of the cache stand on both sides of the turn.
    "phi3 (longrope)": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 32}),
}
