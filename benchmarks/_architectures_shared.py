"""What all architectures of the sweep share: a small tokenizer, rows of unequal length, and a cache for students."""

from __future__ import annotations

import json
from pathlib import Path

import logitcache as lc
from benchmarks._architectures_checks import TOP_K, copy_files
from benchmarks._architectures_configs import FIRST_MARK
from benchmarks._architectures_models import build

TEXT = Path(__file__).parents[1] / "examples" / "data" / "train"
# Words of each row: unequal, so that a batch is padded, and longer than every window of the tiny models.
_WORDS = (2, 5, 9, 14, 20, 26)


def prepare(shared: Path) -> None:
    """Write ``tokenizer/``, ``rows.jsonl`` and ``cache/``; the cache's teacher is a tiny Llama."""
    text = "\n".join(path.read_text(encoding="utf-8")[:20_000] for path in sorted(TEXT.glob("*.txt"))[:4])
    _save_tokenizer(text, shared / "tokenizer")
    words, start, rows = text.split(), 0, []
    for count in _WORDS:
        rows.append(" ".join(words[start : start + count]))
        start += count
    (shared / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    build("llama", shared / "teacher", seed=1)
    copy_files(shared / "tokenizer", shared / "teacher")
    lc.dump(
        teacher=str(shared / "teacher"),
        data=[str(shared / "rows.jsonl")],
        out=shared / "cache",
        top_k=TOP_K,
        preset="exact",
        shard_format="arrow",
        max_length=96,
        min_mass=0.0,
    )


def _save_tokenizer(text: str, directory: Path) -> None:
    """Byte-level pairs with fewer entries than the models have ids: those left over stand for images and sounds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=FIRST_MARK - 20,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
