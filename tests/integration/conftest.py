"""A small teacher and student of one vocabulary, and the teacher's caches of a text and of held-out text."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_caches import TEXT, cache_of_model, save_llama, save_tokenizer, text_sequences
from transformers import AutoModelForCausalLM

from logitcache.cache.reader import Cache


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with decided opinions, and a tokenizer of 600 words of its own."""
    place = tmp_path_factory.mktemp("teacher")
    tokenizer = save_tokenizer(place / "tokenizer", TEXT)
    return save_llama(place / "teacher", tokenizer, seed=0, sharpness=20)


@pytest.fixture(scope="session")
def student_dir(teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random model of the same shape, with the same tokenizer."""
    return save_llama(tmp_path_factory.mktemp("student") / "student", teacher_dir, seed=1)


@pytest.fixture(scope="session")
def cache(teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    model = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    sequences = text_sequences(teacher_dir, TEXT, 48, 22)
    return cache_of_model(tmp_path_factory.mktemp("cache") / "cache", model, sequences, teacher_dir)


@pytest.fixture(scope="session")
def held_out(teacher_dir: Path, heldout_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    model = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    sequences = text_sequences(teacher_dir, heldout_text, 48, 8)
    return cache_of_model(tmp_path_factory.mktemp("held-out") / "cache", model, sequences, teacher_dir)
