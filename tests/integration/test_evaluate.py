"""Evaluation on a cache: the numbers equal a simple computation over full logits, and are always the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from make_caches import (
    cache_of_model,
    random_targets,
    save_llama,
    save_tokenizer,
    shard_of,
    text_sequences,
    write_cache,
)
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import logitcache as lc
from logitcache.cache.reader import Cache
from logitcache.cli.main import app

pytestmark = pytest.mark.integration
TEXT = Path(__file__).resolve().parents[2] / "examples" / "data" / "heldout" / "1964_lyndon_b_johnson.txt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("evaluate")
    tokenizer = save_tokenizer(place / "tokenizer", TEXT)
    save_llama(place / "teacher", tokenizer, seed=0, sharpness=20)
    save_llama(place / "student", tokenizer, seed=1, sharpness=10)
    return place


@pytest.fixture(scope="module")
def cache(place: Path) -> Cache:
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher").eval()
    return cache_of_model(
        place / "cache", teacher, text_sequences(place / "teacher", TEXT, 40, 9), place / "teacher", k=40
    )


def test_every_measure_equals_a_simple_computation(place: Path, cache: Cache) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "student").eval()
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher").eval()
    sums = dict.fromkeys(("kl", "cross_entropy", "top1", "overlap", "coverage"), 0.0)
    count = 0
    for sequence in cache:
        with torch.no_grad():
            ids = sequence.token_ids[None]
            theirs, ours = (model(input_ids=ids).logits[0, :-1].double().log_softmax(1) for model in (teacher, student))
        for log_t, log_s, label in zip(theirs, ours, sequence.token_ids[1:].tolist(), strict=True):
            listed = set(log_t.topk(40).indices.tolist())
            kept = torch.tensor(sorted(listed))
            rest_t, rest_s = (1 - one[kept].exp().sum() for one in (log_t, log_s))
            sums["kl"] += float(
                (log_t[kept].exp() * (log_t[kept] - log_s[kept])).sum() + rest_t * (rest_t / rest_s).log()
            )
            sums["cross_entropy"] -= float(log_s[label])
            best_t, best_s = (set(one.topk(8).indices.tolist()) for one in (log_t, log_s))
            sums["top1"] += float(log_t.argmax() == log_s.argmax())
            sums["overlap"] += len(best_t & best_s) / 8
            sums["coverage"] += len(best_s & listed) / 8
            count += 1
    metrics = lc.evaluate(cache, place / "student")
    assert metrics.positions == count
    assert metrics.kl == pytest.approx(sums["kl"] / count, rel=1e-4)
    assert metrics.cross_entropy == pytest.approx(sums["cross_entropy"] / count, rel=1e-5)
    assert metrics.perplexity == pytest.approx(math.exp(sums["cross_entropy"] / count), rel=1e-4)
    assert metrics.top1_agreement == pytest.approx(sums["top1"] / count)
    assert metrics.overlap[1] == metrics.top1_agreement
    assert metrics.overlap[8] == pytest.approx(sums["overlap"] / count, abs=1e-9)
    assert metrics.s_ld_coverage == pytest.approx(sums["coverage"] / count, abs=1e-9)
    assert set(metrics.overlap) == {1, 8, 32}


def test_the_teacher_itself_is_perfect(place: Path, cache: Cache) -> None:
    metrics = lc.evaluate(cache, place / "teacher")
    assert metrics.kl == pytest.approx(0, abs=1e-5)
    assert metrics.top1_agreement == metrics.overlap[8] == metrics.s_ld_coverage == 1


def test_the_same_numbers_twice_and_for_any_batch_size(place: Path, cache: Cache) -> None:
    first = lc.evaluate(cache, place / "student")
    assert lc.evaluate(cache.root, place / "student") == first
    other = lc.evaluate(cache, place / "student", batch_size=1).flat()
    assert other == pytest.approx(first.flat(), rel=1e-5)


def test_a_loaded_student_keeps_its_mode_and_its_weights(place: Path, cache: Cache) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "student").train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert lc.evaluate(cache, student) == lc.evaluate(cache, place / "student")
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_loaded_adapter_is_measured_with_its_base(place: Path, cache: Cache) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "student")
    plain = lc.evaluate(cache, student)
    adapted = get_peft_model(student, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    measured = lc.evaluate(cache, adapted)
    assert measured.kl != plain.kl
    assert measured.kl == pytest.approx(lc.evaluate(cache, adapted.merge_and_unload()).kl, rel=1e-4)


def test_virtual_tokens_can_not_be_measured(place: Path, cache: Cache) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "student")
    prompted = get_peft_model(student, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(lc.LogitCacheError, match=r"can't be measured: PROMPT_TUNING adds virtual tokens$"):
        lc.evaluate(cache, prompted)


def random_cache(place: Path, root: Path, vocab_size: int, k: int) -> Cache:
    generator = torch.Generator().manual_seed(0)
    ids = [[5, 6, 7, 8], [9, 10, 11]]
    return write_cache(
        root, [shard_of(ids, [random_targets(one, k, vocab_size, generator) for one in ids])], place / "tokenizer"
    )


def test_a_tokenizer_may_have_more_entries_than_both_heads(place: Path, tmp_path: Path) -> None:
    """For example, Gemma 3's has an entry for images, which the text doesn't use."""
    student = AutoModelForCausalLM.from_pretrained(place / "student")
    words = student.config.vocab_size
    student.resize_token_embeddings(words - 3)
    cache = random_cache(place, tmp_path / "cache", vocab_size=words - 3, k=8)
    assert lc.evaluate(cache, student).positions == 5


def test_a_cache_of_every_id_needs_a_head_with_all_ids(place: Path, tmp_path: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "student")
    words = student.config.vocab_size
    cache = random_cache(place, tmp_path / "cache", vocab_size=words + 8, k=words + 8)
    with pytest.raises(lc.LogitCacheError, match=f"has only {words:,} rows: cut the cache with `logitcache convert"):
        lc.evaluate(cache, student)


def test_metrics_survive_a_log() -> None:
    metrics = lc.Metrics(1.0, 2.0, 7.4, 0.5, {1: 0.5, 8: 0.25}, 0.75, 10)
    assert lc.Metrics.from_flat(metrics.flat("eval_"), "eval_") == metrics


def test_eval_command(place: Path, cache: Cache, tmp_path: Path) -> None:
    runner = CliRunner()
    one = runner.invoke(app, ["eval", "--cache", str(cache.root), "--student", str(place / "student"), "--json"])
    assert one.exit_code == 0, one.output
    expected = lc.evaluate(cache, place / "student").as_dict()
    assert json.loads(one.stdout) == json.loads(json.dumps(expected))
    names = [str(place / "student"), str(place / "teacher")]
    plot = tmp_path / "plot.png"
    several = runner.invoke(app, ["eval", "--cache", str(cache.root), "--compare", *names, "--plot", str(plot)])
    assert several.exit_code == 0, several.output
    assert "overlap@8" in several.stdout
    assert plot.stat().st_size > 5000
