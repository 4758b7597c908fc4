"""Tokenizers with the same ids for the cache's tokens, but more or fewer entries; and others, which are refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_caches import TEXT, cache_of_model, save_llama, save_tokenizer, text_sequences
from tiny_models import write_gguf
from train_tools import losses_of
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from logitcache.cache.reader import Cache
from logitcache.errors import LogitCacheWarning, TokenizerMismatchError

pytestmark = pytest.mark.integration
SETTINGS: dict[str, Any] = {
    "loss": "forward_kl", "batch_size": 22, "max_steps": 1, "checkpoint_every": 0, "write_report": False,
}  # fmt: skip
Edit = Callable[[dict[str, Any]], None]


def with_tokens(source: Path, out: Path, special: list[str], rows: int | None = None) -> Path:
    """A copy of a model whose tokenizer has more special tokens; its embeddings may have more rows."""
    shutil.copytree(source, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.save_pretrained(out)
    if rows is not None:
        model = AutoModelForCausalLM.from_pretrained(out)
        model.resize_token_embeddings(rows)
        model.save_pretrained(out)
    return out


def with_edit(source: Path, out: Path, edit: Edit) -> Path:
    shutil.copytree(source, out)
    content = json.loads((out / "tokenizer.json").read_text())
    edit(content)
    (out / "tokenizer.json").write_text(json.dumps(content))
    return out


def add_padding(content: dict[str, Any]) -> None:
    content["model"]["vocab"] |= {f"[PAD{number}]": number for number in range(600, 608)}


def swap(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["th"], vocab["in"] = vocab["in"], vocab["th"]


def rename_special(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["content"] = "<|other|>"
    content["model"]["vocab"]["<|other|>"] = content["model"]["vocab"].pop("<|end|>")


def forget_the_last_merges(content: dict[str, Any]) -> None:
    del content["model"]["merges"][-5:]


def forget_the_last_word(content: dict[str, Any]) -> None:
    del content["model"]["merges"][-1]
    del content["model"]["vocab"][max(content["model"]["vocab"], key=content["model"]["vocab"].get)]


def decompose(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "NFC"}


def check(cache: Cache, student: Path, out: Path, *named: str) -> lc.TrainResult:
    """Trained with one note that names the difference, measured with a warning, saved with its own tokenizer."""
    result = lc.train(cache=cache.root, student=student, out=out, **SETTINGS)
    notes = [note for note in result.notes if "tokenizers differ" in note]
    assert len(notes) == 1
    assert all(name in notes[0] for name in named), notes
    with pytest.warns(LogitCacheWarning, match="tokenizers differ"):
        assert lc.evaluate(cache, student).positions > 0
    own, saved = (AutoTokenizer.from_pretrained(path) for path in (student, out))
    assert saved.get_vocab() == own.get_vocab()
    return result


@pytest.mark.parametrize("rows", [None, 601, 640])
def test_an_added_pad_token(cache: Cache, student_dir: Path, tmp_path: Path, rows: int | None) -> None:
    plain = lc.train(cache=cache.root, student=student_dir, out=tmp_path / "plain", **SETTINGS)
    student = with_tokens(student_dir, tmp_path / "student", ["[PAD]"], rows)
    result = check(cache, student, tmp_path / "out", "1 token ('[PAD]', id 600) that the cache's lacks")
    assert losses_of(result) == pytest.approx(losses_of(plain), abs=1e-6)
    assert any("head has" in note for note in result.notes) == (rows is not None)


def test_more_special_tokens_than_a_message_names(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    special = [f"<|special_{number}|>" for number in range(7)]
    student = with_tokens(student_dir, tmp_path / "student", special, 640)
    check(cache, student, tmp_path / "out", "7 tokens", "<|special_0|>", "<|special_2|>", "…")


def test_padding_entries_that_no_text_yields(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    student = with_edit(student_dir, tmp_path / "student", add_padding)
    check(cache, student, tmp_path / "out", "8 tokens ('[PAD600]'")


def test_one_id_with_two_names_of_which_one_is_unused(teacher_dir: Path, student_dir: Path, tmp_path: Path) -> None:
    padded = with_edit(teacher_dir, tmp_path / "padded", add_padding)
    model = AutoModelForCausalLM.from_pretrained(padded).eval()
    cache = cache_of_model(tmp_path / "cache", model, text_sequences(padded, TEXT, 32, 4), padded)
    student = with_tokens(student_dir, tmp_path / "student", ["<think>"], 608)
    check(cache, student, tmp_path / "out", "'[PAD600]' and '<think>'", "7 tokens ('[PAD601]'")


def test_composed_letters_do_not_change_the_ids(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    student = with_edit(student_dir, tmp_path / "student", decompose)
    check(cache, student, tmp_path / "out", "composes accented letters")


@pytest.mark.parametrize("edit", [swap, rename_special, forget_the_last_merges, forget_the_last_word])
def test_other_ids_are_refused(cache: Cache, student_dir: Path, tmp_path: Path, edit: Edit) -> None:
    student = with_edit(student_dir, tmp_path / "student", edit)
    with pytest.raises(TokenizerMismatchError, match="the student's tokenizer") as error:
        lc.train(cache=cache.root, student=student, out=tmp_path / "out", **SETTINGS)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(TokenizerMismatchError):
        lc.evaluate(cache, student)
    assert not (tmp_path / "out").exists()


def test_another_family_is_refused(cache: Cache, heldout_text: Path, tmp_path: Path) -> None:
    """A tokenizer trained on another text, with the same vocabulary size."""
    student = save_llama(tmp_path / "student", save_tokenizer(tmp_path / "tokenizer", heldout_text), seed=1)
    with pytest.raises(TokenizerMismatchError, match="tokens differ"):
        lc.train(cache=cache.root, student=student, out=tmp_path / "out", **SETTINGS)


@pytest.mark.parametrize("rows", [600, 640])
def test_tokens_that_the_student_lacks(teacher_dir: Path, student_dir: Path, tmp_path: Path, rows: int) -> None:
    """A token without an embedding can't be read, so later positions are left out. A new embedding has no meaning."""
    teacher = with_tokens(teacher_dir, tmp_path / "teacher", ["<|call|>"], 601)
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    with torch.no_grad():
        model.lm_head.weight[600] = 0  # so that it is seldom among the best
    sequences = [[*ids[:9], 600, *ids[9:]] for ids in text_sequences(teacher, TEXT, 32, 4, ragged=False)]
    cache = cache_of_model(tmp_path / "cache", model, sequences, teacher, k=16)
    student = student_dir if rows == 600 else with_tokens(student_dir, tmp_path / "student", [], rows)
    result = check(cache, student, tmp_path / "out", "1 token ('<|call|>', id 600) that the student's lacks")
    own = AutoModelForCausalLM.from_pretrained(student)
    total, count, left_out = 0.0, 0, 0
    for sequence in cache:
        targets, positions = sequence.targets, sequence.positions
        if rows == 600:  # position 8 would have to predict the token
            kept = (positions < 8) & (targets.ids < 600).all(1)
            left_out += int((~kept).sum())
            ids = sequence.token_ids.clamp(max=599)
        else:
            kept, ids = positions >= 0, sequence.token_ids
        with torch.no_grad():
            logits_NV = own(input_ids=ids[None]).logits[0, positions[kept], :601]
        part = lc.TopK(targets.ids[kept], targets.logprobs[kept], targets.residual_logprob[kept], logits_NV.shape[1])
        total += float(lc.losses.get("forward_kl")(logits_NV, part).sum())
        count += int(kept.sum())
    assert losses_of(result)[0] == pytest.approx(total / count, abs=1e-5)
    assert any(
        f"{left_out} of {cache.manifest.totals.targets} in the first shard" in note for note in result.notes
    ) == (rows == 600)
    assert lc.evaluate(cache, student).positions == count


def test_the_ordinary_student_of_a_gguf_teacher(
    teacher_dir: Path, student_dir: Path, heldout_text: Path, tmp_path: Path
) -> None:
    """Its tokenizer has names for padding rows, and an end of text that the file doesn't name."""
    pytest.importorskip("gguf")
    padded = with_tokens(teacher_dir, tmp_path / "padded", [], 624)
    gguf = write_gguf(padded, tmp_path / "teacher.gguf")
    settings: dict[str, Any] = {"data": [str(heldout_text)], "top_k": 8, "max_length": 64, "min_mass": 0}
    with pytest.warns(LogitCacheWarning, match=r"the reference's tokenizer differs.*25 tokens \('\[PAD600\]'"):
        cache = lc.dump(teacher=str(gguf), reference=str(student_dir), candidates=2, out=tmp_path / "cache", **settings)
    check(cache, student_dir, tmp_path / "out", "25 tokens ('[PAD600]', id 600", "that the student's lacks")


def test_a_reference_without_rows_for_the_tokens_is_refused(
    teacher_dir: Path, student_dir: Path, heldout_text: Path, tmp_path: Path
) -> None:
    teacher = with_tokens(teacher_dir, tmp_path / "teacher", ["<|call|>"], 601)
    with pytest.raises(TokenizerMismatchError, match="has 600 ids, and the teacher's tokenizer has ids up to"):
        lc.dump(teacher=str(teacher), reference=str(student_dir), data=[str(heldout_text)], out=tmp_path / "out")


def test_an_added_pad_token_of_a_real_tokenizer(smollm2_dir: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    cache = cache_of_model(tmp_path / "cache", model, text_sequences(smollm2_dir, TEXT, 32, 4), smollm2_dir, k=8)
    student = with_tokens(tiny_llama_dir, tmp_path / "student", ["[PAD]"])
    check(cache, student, tmp_path / "out", "1 token ('[PAD]', id 49,152)")


def test_equal_tokenizers_give_no_note(cache: Cache, student_dir: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LogitCacheWarning)
        lc.evaluate(cache, student_dir)
