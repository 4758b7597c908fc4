"""The teacher answers prompts: the cache holds its own answers, for any worker and any order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from logitcache.errors import ConfigError, DataError

pytestmark = pytest.mark.integration

PROMPTS = [
    {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "left out"}]},
    {"prompt": "The sea is"},
    {"text": "Once upon a time"},
    {"input_ids": [504, 3575, 282]},
]


@pytest.fixture
def dump(tiny_llama_dir: Path, tmp_path: Path) -> Any:
    def call(name: str, rows: list[dict[str, Any]] = PROMPTS, **settings: Any) -> lc.Cache:
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {"teacher": str(tiny_llama_dir), "max_length": 128, "min_mass": 0.0, "top_k": 8} | settings
        return lc.dump(data=[str(data)], out=tmp_path / name, **settings)

    return call


def answers(cache: lc.Cache) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Prompt tokens → answer tokens."""
    found = {}
    for sequence in cache:
        first = int(sequence.positions[0]) + 1
        tokens = sequence.token_ids.tolist()
        found[tuple(tokens[:first])] = tuple(tokens[first:])
        assert sequence.positions.tolist() == list(range(first - 1, len(tokens) - 1))
    return found


def test_greedy_answers_are_the_teachers_own(dump: Any, tiny_llama_dir: Path) -> None:
    cache = dump("greedy", generate={"max_new_tokens": 12})
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    found = answers(cache)
    assert len(found) == len(PROMPTS)
    for prompt, said in found.items():
        ids = torch.tensor([prompt])
        own = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert tuple(own[0, len(prompt) :].tolist()) == said
    chat = tokenizer.apply_chat_template(PROMPTS[1]["messages"][:1], add_generation_prompt=True)["input_ids"]
    assert tuple(chat) in found
    for sequence in cache:
        with torch.no_grad():
            own = model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions].log_softmax(1)
        difference = own.gather(1, sequence.targets.ids) - sequence.targets.logprobs
        assert difference.abs().max() <= cache.manifest.encoding.bound + 1e-4
        assert torch.equal(sequence.targets.ids[:, 0], sequence.labels)  # greedy: the top token was said
    assert cache.manifest.provenance.settings["generate"]["temperature"] == 0


def test_samples_depend_only_on_the_seed_and_the_prompt(dump: Any) -> None:
    sampled = {"max_new_tokens": 12, "temperature": 1.0, "seed": 1}
    first = dump("first", generate=sampled)
    shuffled = dump("shuffled", rows=PROMPTS[::-1], generate=sampled, shard_tokens=32, batch_tokens=128)
    assert answers(first) == answers(shuffled)
    assert dump("again", generate=sampled).digest == first.digest
    assert answers(dump("other", generate=sampled | {"seed": 2})) != answers(first)


def test_samples_follow_the_distribution(dump: Any, tiny_llama_dir: Path) -> None:
    """First tokens of many prompts against their own probabilities: the sampled ids' ranks must be uniform."""
    rows = [{"input_ids": [n, n + 1, n + 2]} for n in range(100, 400)]
    cache = dump("many", rows=rows, generate={"max_new_tokens": 1, "temperature": 1.0}, positions="all")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    places = []
    for sequence in cache:
        with torch.no_grad():
            probs = model(input_ids=sequence.token_ids[None, :-1]).logits[0, -1].double().softmax(0)
        said = probs[sequence.token_ids[-1]]
        places.append(float(probs[probs > said].sum() + said / 2))
    placed = torch.tensor(places).sort().values
    expected = (torch.arange(len(places)) + 0.5) / len(places)
    # Kolmogorov and Smirnov: 1.63 / sqrt(n) is passed once in a hundred; the seed is fixed.
    assert (placed - expected).abs().max() < 1.63 / len(places) ** 0.5
    assert cache[0].positions.tolist() == [0, 1, 2]


def test_top_p_keeps_the_most_probable(dump: Any) -> None:
    nearly_greedy = dump("narrow", generate={"max_new_tokens": 8, "temperature": 1.0, "top_p": 1e-9})
    assert answers(nearly_greedy) == answers(dump("greedy", generate={"max_new_tokens": 8}))


def test_impossible_settings_are_refused(dump: Any) -> None:
    with pytest.raises(DataError, match=r"the prompt has 3 tokens; 2 leave room for the answer"):
        dump("long", rows=PROMPTS[4:], generate={"max_new_tokens": 10}, max_length=12)
    with pytest.raises(ConfigError, match="max_new_tokens 128 must be below max_length 128"):
        dump("none", generate={"max_new_tokens": 128})
    with pytest.raises(ConfigError, match="overlap has no meaning with generate"):
        dump("overlap", generate={}, overlap=2)
    with pytest.raises(ConfigError, match=r"generate\.temperature = -1"):
        dump("cold", generate={"temperature": -1})


def test_smollm2_answers(dump: Any, smollm2_dir: Path) -> None:
    cache = dump("real", rows=PROMPTS[:1], generate={"max_new_tokens": 16}, teacher=str(smollm2_dir))
    tokenizer = cache.load_tokenizer()
    assert tokenizer.decode(cache[0].labels) == "The capital of France is Paris.<|im_end|>"
