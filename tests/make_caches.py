"""Small caches for tests, built through the cache's own writer from a real model or from random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from logitcache.cache.publish import finalize_cache, publish_shard
from logitcache.cache.reader import Cache, open_cache
from logitcache.cache.tokenizer import tokenizer_digest, tokenizer_files
from logitcache.format.arrays import ShardArrays, sequence_digest
from logitcache.format.encoding import Encoding
from logitcache.format.formats import encode_shard
from logitcache.format.manifest import Provenance, Teacher
from logitcache.targets.topk import TopK

TEXT = Path(__file__).resolve().parents[1] / "examples" / "data" / "train" / "1961_john_f_kennedy.txt"
NO_DIGEST = "sha256:" + "0" * 64


def save_tokenizer(path: Path, text: Path, words: int = 600) -> Path:
    """Train a byte-level BPE tokenizer of a few hundred words on a text: small vocabularies make fast tests."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(text)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(path)
    return path


def save_llama(path: Path, tokenizer_dir: Path, seed: int, *, width: int = 32, sharpness: float = 1.0) -> Path:
    """A random two-layer Llama. A random teacher is nearly uniform; ``sharpness`` gives it opinions."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(sharpness)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def text_sequences(tokenizer_dir: Path, text: Path, length: int, count: int, ragged: bool = True) -> list[list[int]]:
    """Token ids of real text, cut into ``count`` sequences of up to ``length`` tokens."""
    ids = AutoTokenizer.from_pretrained(tokenizer_dir)(text.read_text(encoding="utf-8")).input_ids
    pieces, start = [], 0
    for number in range(count):
        size = max(2, length - (number * 7) % (length // 2)) if ragged else length
        pieces.append(ids[start : start + size])
        start += size
    return pieces


@torch.no_grad()
def model_targets(model: Any, ids: Sequence[int], k: int) -> TopK:
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return TopK.from_logits(logits.float(), k, statistics=True)


def random_targets(ids: Sequence[int], k: int, vocab_size: int, generator: torch.Generator) -> TopK:
    return TopK.from_logits(torch.randn(len(ids) - 1, vocab_size, generator=generator) * 3, k)


def shard_of(sequences: Sequence[Sequence[int]], targets: Sequence[TopK], statistics: bool = False) -> ShardArrays:
    """Sequences and the targets of all their positions but the last, as one shard."""
    joined = TopK.cat(targets)
    masks = [np.arange(len(ids)) < len(ids) - 1 for ids in sequences]
    digests = [
        np.frombuffer(sequence_digest(np.array(ids, dtype=np.uint32), mask), dtype=np.uint8)
        for ids, mask in zip(sequences, masks, strict=True)
    ]
    return ShardArrays(
        token_ids_L=np.concatenate([np.array(ids, dtype=np.uint32) for ids in sequences]),
        offsets_S1=np.cumsum([0, *map(len, sequences)]).astype(np.int64),
        sequence_digests_S16=np.stack(digests),
        target_mask_L=np.concatenate(masks),
        topk_ids_NK=joined.ids.numpy().astype(np.uint32),
        topk_logprobs_NK=joined.logprobs.float().numpy(),
        residual_logprob_N=joined.residual_logprob.float().numpy(),
        vocab_size=joined.vocab_size,
        log_partition_N=joined.log_partition.numpy() if statistics else None,
        logit_std_N=joined.logit_std.numpy() if statistics else None,
    )


def write_cache(
    root: Path,
    shards: Sequence[ShardArrays],
    tokenizer_dir: Path,
    *,
    preset: str = "exact",
    shard_format: str = "zarr",
    teacher: str = "test",
) -> Cache:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    encoding = Encoding(preset=preset)
    entries = [
        publish_shard(root, encode_shard(arrays, encoding, shard_format), arrays, shard_format) for arrays in shards
    ]
    provenance = Provenance(
        teacher=Teacher(name=teacher, weights_digest=NO_DIGEST, dtype="fp32", engine="test"),
        tokenizer_digest=tokenizer_digest(tokenizer),
        corpus_digest=NO_DIGEST,
        top_k=shards[0].k,
        vocab_size=shards[0].vocab_size,
        positions="all",
    )
    finalize_cache(root, entries, provenance, encoding, shard_format, tokenizer_files(tokenizer))
    return open_cache(root)


def cache_of_model(
    root: Path,
    model: Any,
    sequences: Sequence[Sequence[int]],
    tokenizer_dir: Path,
    *,
    k: int = 64,
    per_shard: int = 4,
    preset: str = "exact",
    statistics: bool = False,
) -> Cache:
    """A cache of a real model's predictions."""
    shards = []
    for start in range(0, len(sequences), per_shard):
        part = sequences[start : start + per_shard]
        shards.append(shard_of(part, [model_targets(model, ids, k) for ids in part], statistics))
    return write_cache(root, shards, tokenizer_dir, preset=preset)
