"""Read rows of JSON lines: vLLM's ``prompt_logprobs`` and OpenAI-style ``top_logprobs``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from logitcache.errors import DataError
from logitcache.exchange.rows import Row
from logitcache.exchange.token_bytes import TokenBytes
from logitcache.utils.files import storage_error
from logitcache.utils.reasons import reason


def vllm_rows(files: list[Path]) -> Iterator[Row]:
    """One row per line: ``prompt_token_ids`` and ``prompt_logprobs``, at the top level or in ``choices[0]``.

    ``prompt_logprobs[j]`` predicts token ``j`` itself, so it belongs to position ``j - 1``. It lists the best tokens.
    If the prompt's own token isn't among them, it is an extra entry, which is left out.

    Raises:
        DataError: a line isn't of this form.
        StorageError: the system refused to read a file.
    """
    for where, value in _lines(files):
        holder = value if "prompt_logprobs" in value else _first_choice(value, where)
        tokens = holder.get("prompt_token_ids") or value.get("prompt_token_ids")
        lists = holder.get("prompt_logprobs")
        if not isinstance(tokens, list) or not isinstance(lists, list) or len(tokens) != len(lists):
            raise DataError(f"{where}: needs prompt_token_ids and prompt_logprobs of equal length")
        positions, ids, logprobs = [], [], []
        for index, entries in enumerate(lists):
            if not entries or index == 0:
                continue
            kept = _without_extra(entries, where)
            positions.append(index - 1)
            ids.append(np.array([int(name) for name, _ in kept], np.int64))
            logprobs.append(np.array([logprob for _, logprob in kept], np.float64))
        yield Row(where, np.array(tokens, np.uint32), np.array(positions, np.int64), ids, logprobs)


def openai_rows(files: list[Path], tokenizer: Any) -> Iterator[Row]:
    """One row per line: ``messages`` or ``prompt``, and ``choices[0].logprobs`` at the top level or in ``response``.

    Tokens are text or bytes, and their ids are looked up in the tokenizer. Only the completion has targets. Entries
    with a token that the tokenizer doesn't have are left out.

    Raises:
        DataError: a line isn't of this form, or the tokenizer isn't the teacher's.
        StorageError: the system refused to read a file.
    """
    lookup = TokenBytes(tokenizer)
    for where, value in _lines(files):
        answer = value.get("response", value)
        content = _content(_first_choice(answer, where), where)
        prompt = _prompt(value, tokenizer, where)
        tokens, positions, ids, logprobs = list(prompt), [], [], []
        skipped = 0
        for item in content:
            own = lookup.find(item)
            if own is None:
                raise DataError(
                    f"{where}: the tokenizer has no token {str(item.get('token'))[:40]!r}: is it the teacher's?"
                )
            found = {lookup.find(entry): entry.get("logprob") for entry in item.get("top_logprobs") or []}
            found.pop(None, None)
            if found and tokens:
                positions.append(len(tokens) - 1)
                ids.append(np.array(list(found), np.int64))
                logprobs.append(np.array(list(found.values()), np.float64))
            else:
                skipped += 1
            tokens.append(own)
        yield Row(where, np.array(tokens, np.uint32), np.array(positions, np.int64), ids, logprobs, skipped)


def _without_extra(entries: Any, where: str) -> list[tuple[str, float]]:
    try:
        ranked = [(name, float(entry["logprob"]), entry.get("rank")) for name, entry in entries.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: an entry of prompt_logprobs isn't id: {{logprob, rank}}") from error
    # n entries have ranks 1 to n, unless the prompt's own token is an extra entry with a higher rank.
    return [(name, logprob) for name, logprob, rank in ranked if rank is None or rank <= len(ranked)]


def _content(choice: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The entries of a completion. Chat completions have ``content``; older completions have parallel lists."""
    found = choice.get("logprobs")
    if isinstance(found, dict) and isinstance(found.get("content"), list):
        return list(found["content"])
    if (
        isinstance(found, dict)
        and isinstance(found.get("top_logprobs"), list)
        and isinstance(found.get("tokens"), list)
    ):
        pairs = zip(found["tokens"], found["top_logprobs"], strict=False)
        return [
            {"token": token, "top_logprobs": [{"token": name, "logprob": value} for name, value in (top or {}).items()]}
            for token, top in pairs
        ]
    raise DataError(f"{where}: choices[0] has no logprobs.content (was the request made with logprobs=true?)")


def _prompt(value: dict[str, Any], tokenizer: Any, where: str) -> list[int]:
    if isinstance(value.get("messages"), list):
        try:
            text = tokenizer.apply_chat_template(value["messages"], add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program and may raise any error
            raise DataError(
                f"{where}: the tokenizer's chat template can't render the messages: {reason(error)}"
            ) from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if isinstance(value.get("prompt"), str):
        return list(tokenizer(value["prompt"])["input_ids"])
    raise DataError(f"{where}: needs messages or prompt, from which the completion was generated")


def _first_choice(value: Any, where: str) -> dict[str, Any]:
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise DataError(f"{where}: has neither the log-probs nor choices that hold them")
    return choices[0]


def _lines(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield f"{path.name} line {number}", _object(line, f"{path.name} line {number}")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not a text file of JSON lines") from error
        except OSError as error:
            raise storage_error("read", path, error) from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {reason(error)}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object")
    return value
