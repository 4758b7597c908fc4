"""Find the id of a token by its bytes or text, because APIs name tokens in this way."""

from __future__ import annotations

import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """The ids of a tokenizer's tokens by their bytes. Of several tokens with the same bytes, the lowest id is used."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        by_level = backend is not None and "ByteLevel" in repr(backend.decoder)
        special = set(tokenizer.get_added_vocab())
        self._ids: dict[bytes, int] = {}
        for text, number in sorted(tokenizer.get_vocab().items(), key=lambda item: -item[1]):
            raw = text.encode("utf-8", "surrogatepass") if text in special else _token_bytes(text, by_level)
            self._ids[raw] = number

    def find(self, entry: dict[str, Any]) -> int | None:
        """The id of ``{"bytes": [...]}`` or, without bytes, of ``{"token": "..."}``; None if there is none."""
        listed = entry.get("bytes")
        if listed:
            return self._ids.get(bytes(listed))
        text = str(entry.get("token", ""))
        if text.startswith("bytes:"):  # some servers write bytes that aren't text in this way
            escaped = text.removeprefix("bytes:")
            if re.fullmatch(r"(\\x[0-9a-fA-F]{2})+", escaped):
                return self._ids.get(bytes.fromhex(escaped.replace("\\x", "")))
        return self._ids.get(text.encode("utf-8", "surrogatepass"))


def _token_bytes(text: str, by_level: bool) -> bytes:
    if by_level and all(char in _LEVEL for char in text):
        return bytes(_LEVEL[char] for char in text)
    match = _BYTE_TOKEN.fullmatch(text)
    if match:
        return bytes([int(match[1], 16)])
    return text.replace("▁", " ").encode("utf-8", "surrogatepass")


def _level_table() -> dict[str, int]:
    """GPT-2's characters for bytes: a printable byte is its own character; the others use characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(0x100 + number): byte for number, byte in enumerate(rest)}


_LEVEL = _level_table()
