"""Shared by tests of rows: sequences and counts of one row, and tokenizers that begin texts with BOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from logitcache.data import RowTokeniser, Tally

BOS, END = "<|im_start|>", "<|endoftext|>"


def beginning_with_bos(smollm2_dir: Path) -> Any:
    """SmolLM2's tokenizer as Llama's or Gemma's would be: BOS before every text, no chat template."""
    made = AutoTokenizer.from_pretrained(smollm2_dir)
    made.chat_template = None
    made._tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, made.bos_token_id)]
    )
    return made


def tokenise(tokenizer: Any, row: dict[str, Any], **options: Any) -> tuple[list[Any], Tally]:
    made = RowTokeniser(tokenizer, **{"vocab_size": len(tokenizer), "max_length": 10_000} | options)
    return made.sequences(row, "row 1"), made.tally


def spoken(tokenizer: Any, sequence: Any) -> str:
    """The targets, as text."""
    return str(tokenizer.decode(sequence.token_ids_L[1:][sequence.target_mask_L[:-1]]))
