"""Log-probs of other programs are imported unchanged, and a cache is exported as plain Parquet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from share_tools import make_cache
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from logitcache.cache.verify import verify_cache
from logitcache.errors import DataError, OutputExistsError
from logitcache.exchange.distillkit import Bin, Compression, decode_logprobs, unpack_bits
from logitcache.exchange.exporting import export_parquet
from logitcache.exchange.importing import import_logprobs
from logitcache.format.encoding import Encoding

K = 6
TEXT = "The state of the union is strong, and the café – naïve as ever – opens at noon. 你好!"
EXACT = Encoding(preset="exact")


@pytest.fixture(scope="module")
def predictions(tiny_llama_dir: Path) -> tuple[Any, list[int], torch.Tensor]:
    """Tokenizer, tokens, and the model's log-probs ``[L, V]`` of them."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    tokens = tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0] * 8
    return tokenizer, tokens, logits.double().log_softmax(-1)


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def vllm_row(tokens: list[int], logprobs: torch.Tensor, k: int = K) -> dict[str, Any]:
    """Entries as vLLM gives them: the best k, and the prompt's own token as an extra entry if it isn't among them."""
    lists: list[dict[str, Any] | None] = [None]
    for position, token in enumerate(tokens[1:]):
        row = logprobs[position]
        order = row.argsort(descending=True)
        ranks = {int(order[rank]): rank + 1 for rank in range(k)}
        ranks.setdefault(token, int((row > row[token]).sum()) + 1)
        lists.append(
            {str(i): {"logprob": float(row[i]), "rank": rank, "decoded_token": "?"} for i, rank in ranks.items()}
        )
    return {"prompt_token_ids": tokens, "prompt_logprobs": lists}


def assert_targets(cache: lc.Cache, expected: torch.Tensor, tokens: list[int], positions: list[int]) -> None:
    """The cache's only sequence holds the model's top K at these positions."""
    (sequence,) = cache
    assert sequence.token_ids.tolist() == tokens
    assert sequence.positions.tolist() == positions
    best = expected[positions].topk(K)
    assert torch.equal(sequence.targets.ids, best.indices)
    torch.testing.assert_close(sequence.targets.logprobs.double(), best.values, rtol=0, atol=1e-6)
    rest = torch.log1p(-best.values.exp().sum(1))
    torch.testing.assert_close(sequence.targets.residual_logprob.double(), rest, rtol=1e-5, atol=1e-5)


def test_vllm(predictions: tuple[Any, list[int], torch.Tensor], tiny_llama_dir: Path, tmp_path: Path) -> None:
    _, tokens, logprobs = predictions
    file = write_lines(tmp_path / "dump.jsonl", vllm_row(tokens, logprobs))
    made = import_logprobs(
        [file], tmp_path / "cache", kind="vllm", tokenizer=str(tiny_llama_dir), teacher="tiny", top_k=K, encoding=EXACT
    )
    assert_targets(made.cache, logprobs, tokens, list(range(len(tokens) - 1)))
    assert verify_cache(tmp_path / "cache", deep=True).ok
    served = {"choices": [vllm_row(tokens, logprobs)]}
    again = import_logprobs(
        [write_lines(tmp_path / "served.jsonl", served)], tmp_path / "served", kind="vllm",
        tokenizer=str(tiny_llama_dir), teacher="tiny", top_k=K, encoding=EXACT,
    )  # fmt: skip
    assert again.cache.digest == made.cache.digest


def test_openai_chat(predictions: tuple[Any, list[int], torch.Tensor], tiny_llama_dir: Path, tmp_path: Path) -> None:
    tokenizer, tokens, logprobs = predictions
    spell = {number: tokenizer.convert_ids_to_tokens(number) for number in range(len(tokenizer))}
    as_bytes = gpt2_bytes()

    def entry(number: int, position: int) -> dict[str, Any]:
        raw = b"".join(as_bytes[char] for char in spell[number])
        return {
            "token": raw.decode("utf-8", "replace"),
            "bytes": list(raw),
            "logprob": float(logprobs[position, number]),
        }

    content = []
    plain = [number for number in range(len(tokenizer)) if all(char in as_bytes for char in spell[number])]
    only_plain = torch.full_like(logprobs, -math.inf)
    only_plain[:, plain] = logprobs[:, plain]
    for position, token in enumerate(tokens[1:]):
        top = only_plain[position].topk(K).indices.tolist()
        content.append(entry(token, position) | {"top_logprobs": [entry(number, position) for number in top]})
    row = {"prompt": tokenizer.decode(tokens[:1]), "response": {"choices": [{"logprobs": {"content": content}}]}}
    file = write_lines(tmp_path / "answers.jsonl", row)
    made = import_logprobs(
        [file], tmp_path / "cache", kind="openai", tokenizer=str(tiny_llama_dir), teacher="api", top_k=K, encoding=EXACT
    )
    assert_targets(made.cache, only_plain, tokens, list(range(len(tokens) - 1)))


def test_openai_chat_template_goes_before(tiny_llama_dir: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    messages = [{"role": "user", "content": "Hi"}]
    item = {"token": " yes", "top_logprobs": [{"token": " yes", "logprob": -0.1}, {"token": " no", "logprob": -3.0}]}
    unknown = {"token": " yes", "top_logprobs": [{"token": "no such token at all", "logprob": -0.1}]}
    row = {"messages": messages, "choices": [{"logprobs": {"content": [item, unknown]}}]}
    made = import_logprobs(
        [write_lines(tmp_path / "a.jsonl", row)], tmp_path / "cache", kind="openai", tokenizer=str(tiny_llama_dir),
        teacher="api", top_k=2,
    )  # fmt: skip
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    (sequence,) = made.cache
    assert sequence.token_ids.tolist() == [*prompt, *tokenizer(" yes yes")["input_ids"]]
    assert sequence.positions.tolist() == [len(prompt) - 1]
    assert made.skipped_positions == 1


def test_distillkit_exact(
    predictions: tuple[Any, list[int], torch.Tensor], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    tokenizer, tokens, logprobs = predictions
    best = logprobs[:-1].topk(K)
    config = {"d": len(tokenizer), "k": K, "exact_k": K, "exact_dtype": "float32", "residual_bins": [],
              "delta_encoding": False}  # fmt: skip
    write_distillkit(tmp_path / "published", tokens, best.indices.numpy(), best.values.float().numpy(), config)
    made = import_logprobs(
        [tmp_path / "published"], tmp_path / "cache", kind="distillkit", tokenizer=str(tiny_llama_dir), teacher="tiny",
        top_k=K, encoding=EXACT,
    )  # fmt: skip
    assert_targets(made.cache, logprobs, tokens, list(range(len(tokens) - 1)))


def test_distillkit_bits_and_terms() -> None:
    """Two positions with known values: one exact, a linear fit of the rest, two values corrected in 3-bit steps."""
    config = Compression(
        d=1000, k=4, exact_k=1, exact_dtype="float16", polynomial_terms=(0, 1, "sqrt"), term_dtype="float32",
        residual_bins=(Bin(scale_dtype="bfloat16", element_bits=3, num_elements=2),), delta_encoding=True,
    )  # fmt: skip
    coded = []
    for exact, terms, scale, steps in ((-0.5, (-1.0, -0.25, 0.5), 0.5, (7, 0)), (-2.0, (-0.5, 0.0, 0.0), 1.0, (4, 5))):
        raw = np.float16(exact).tobytes() + np.array(terms, "<f4").tobytes()
        raw += (np.float32(scale).view(np.uint32) >> 16).astype("<u2").tobytes()
        coded.append(raw + bytes([steps[0] << 5 | steps[1] << 2]))
    decoded = decode_logprobs(np.array([list(raw) for raw in coded], np.uint8), config)
    root2 = math.sqrt(2)
    first = np.cumsum([-0.5, -1 + 3 * 0.5, -1.25 + 0.5 - 4 * 0.5, -1.5 + 0.5 * root2])
    second = np.cumsum([-2.0, -0.5, -0.5 + 1, -0.5])
    np.testing.assert_allclose(decoded, [first, second], rtol=1e-6)
    packed = np.array([[0b01111101, 0b00000000, 0b00010000]], np.uint8)
    assert unpack_bits(packed, 10, 2).tolist() == [[500, 1]]


def test_other_files_are_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    good = vllm_row([5, 6, 7], torch.full((3, 100), 0.0).double().log_softmax(-1), 2)
    rows = {
        "not JSON": "{",
        "not a JSON object": [1],
        "neither": {"text": "hi"},
        "equal length": good | {"prompt_token_ids": [1]},
        "outside": {
            "prompt_token_ids": [5, 6],
            "prompt_logprobs": [None, {"99999999": {"logprob": -1}, "3": {"logprob": -2}}],
        },
        "add up to more": {
            "prompt_token_ids": [5, 6],
            "prompt_logprobs": [None, {"4": {"logprob": 0}, "3": {"logprob": 0}}],
        },
        "isn't id": {"prompt_token_ids": [5, 6], "prompt_logprobs": [None, {"4": -1.0}]},
    }
    for number, (message, row) in enumerate(rows.items()):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(row if isinstance(row, str) else json.dumps(row))
        with pytest.raises(DataError, match=message) as caught:
            import_logprobs(
                [file], tmp_path / f"out{number}", kind="vllm", tokenizer=str(tiny_llama_dir), teacher="t", top_k=2
            )
        assert f"{number}.jsonl" in str(caught.value)
    with pytest.raises(DataError, match="--top-k"):
        import_logprobs(
            [write_lines(tmp_path / "few.jsonl", good)], tmp_path / "few", kind="vllm", tokenizer=str(tiny_llama_dir),
            teacher="t", top_k=50,
        )  # fmt: skip


def two_tokens(entries: dict[str, Any]) -> dict[str, Any]:
    """A row whose first position has these entries."""
    return {"prompt_token_ids": [5, 6], "prompt_logprobs": [None, entries]}


def test_export_is_plain_parquet(tmp_path: Path) -> None:
    digest = make_cache(tmp_path / "cache", range(3))
    cache = lc.open(tmp_path / "cache")
    assert export_parquet(cache, tmp_path / "out.parquet") == (tmp_path / "out.parquet").stat().st_size
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.metadata[b"logitcache.digest"].decode() == digest
    assert table.num_rows == len(cache)
    rows = table.to_pylist()
    for row, sequence in zip(rows, cache, strict=True):
        assert row["token_ids"] == sequence.token_ids.tolist()
        assert np.array_equal(np.array(row["topk_logprobs"]).reshape(-1, 5), sequence.targets.logprobs.double().numpy())
    with pytest.raises(OutputExistsError):
        export_parquet(cache, tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out.parquet"]


def write_distillkit(
    place: Path, tokens: list[int], ids: np.ndarray, values: np.ndarray, config: dict[str, Any]
) -> None:
    """DistillKit's layout, written without code of the reader."""
    place.mkdir()
    (place / "compression_config.yaml").write_text(yaml.safe_dump(config))
    bits = math.ceil(math.log2(config["d"]))
    packed = []
    for row in ids:
        stream = "".join(format(number, f"0{bits}b") for number in row)
        stream += "0" * (-len(stream) % 8)
        packed.append([int(stream[at : at + 8], 2) for at in range(0, len(stream), 8)])
    lists = pa.list_(pa.list_(pa.uint8()))
    columns = {
        "input_ids": pa.array([tokens], pa.list_(pa.uint64())),
        "compressed_logprobs": pa.array([[list(row.tobytes()) for row in values]], lists),
        "bytepacked_indices": pa.array([packed], lists),
    }
    pq.write_table(pa.table(columns), place / "data_0.parquet")


def gpt2_bytes() -> dict[str, bytes]:
    """GPT-2's characters for bytes, by their definition: printable bytes are themselves, others begin at U+0100."""
    table = {}
    extra = 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            table[chr(byte)] = bytes([byte])
        else:
            table[chr(256 + extra)] = bytes([byte])
            extra += 1
    return table
