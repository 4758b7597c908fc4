"""The reference student of a dump. It also reads the corpus, and its top ids are those that s-LD will compare."""

from __future__ import annotations

import warnings
from typing import Any

from logitcache.dump.config import DumpConfig
from logitcache.errors import ConfigError, LogitCacheWarning, ModelError, TokenizerMismatchError
from logitcache.models.identity import TeacherFiles, find_teacher
from logitcache.models.numbering import compare_numbering
from logitcache.models.probe import longest
from logitcache.models.teacher import load_config, load_tokenizer


def find_reference(config: DumpConfig, tokenizer: Any, max_length: int, vocab_size: int) -> TeacherFiles | None:
    """Find the dump's reference, if there is one, and check it against the teacher's ``tokenizer``.

    Raises:
        ModelError: it can't be found or read.
        TokenizerMismatchError: it gives other ids to tokens than the teacher, or has too small a vocabulary.
        ConfigError: it doesn't take sequences of ``max_length`` tokens.
    """
    if config.reference is None:
        return None
    try:
        files = find_teacher(config.reference)
        own = load_config(files, trust_remote_code=config.trust_remote_code).get_text_config()
        theirs = load_tokenizer(files, trust_remote_code=config.trust_remote_code)
    except ModelError as error:
        raise ModelError(f"the reference can't be used: {error}") from error
    found = compare_numbering(tokenizer, theirs, "the reference's", str(config.reference), "the teacher")
    # Text can have these ids, so the reference must have embeddings for them.
    beyond = [number for number in (*range(found.shared_ids), *found.unknown) if own.vocab_size <= number < vocab_size]
    if beyond:
        raise TokenizerMismatchError(
            f"the reference {config.reference} has {own.vocab_size:,} ids, and the teacher's tokenizer has ids "
            f"up to {beyond[-1]:,}: resize its embeddings, or take another student of the family"
        )
    if found.differences:
        warnings.warn(
            "the reference's tokenizer differs, but gives the same ids to tokens that both have: "
            + "; ".join(found.differences),
            LogitCacheWarning,
            stacklevel=2,
        )
    limit = longest(own)
    if limit and max_length > limit:
        raise ConfigError(f"max_length {max_length} is more than the {limit} tokens that the reference takes")
    return files
