"""Audit rows: dumped with every id at a few positions, and what they tell in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import logitcache as lc

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def audit(tiny_llama_dir: Path, heldout_text: Path, tmp_path_factory: pytest.TempPathFactory) -> lc.Cache:
    root = tmp_path_factory.mktemp("audit")
    text = root / "text.txt"
    text.write_text(heldout_text.read_text(encoding="utf-8")[:3000], encoding="utf-8")
    return lc.dump(
        teacher=tiny_llama_dir, data=text, out=root / "audit", top_k="all", every=7, max_length=64, preset="half"
    )


def test_every_seventh_position_holds_every_id(audit: lc.Cache, tiny_llama_dir: Path) -> None:
    assert audit.top_k == audit.vocab_size
    totals = audit.manifest.totals
    seen = 0
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    for sequence in audit:
        expected = [p for p in range(len(sequence.token_ids) - 1) if (seen + p) % 7 == 0]
        assert sequence.positions.tolist() == expected
        seen += len(sequence.token_ids) - 1
        with torch.no_grad():
            logits = model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions]
        stored = torch.empty_like(logits).scatter_(1, sequence.targets.ids, sequence.targets.logprobs)
        assert (stored - logits.log_softmax(1)).abs().max() < 1 / 64
        assert torch.all(sequence.targets.residual_logprob == -torch.inf)
    assert totals.targets == -(-seen // 7)
    assert audit.manifest.provenance.settings["every"] == 7


def test_dump_goes_on_only_with_the_same_thinning(tiny_llama_dir: Path, heldout_text: Path, tmp_path: Path) -> None:
    settings = {"teacher": tiny_llama_dir, "data": heldout_text, "max_length": 64, "min_mass": 0.0}
    whole = lc.dump(out=tmp_path / "whole", **settings)  # type: ignore[arg-type]
    third = lc.dump(out=tmp_path / "third", every=3, **settings)  # type: ignore[arg-type]
    masks = [np.concatenate([s.target_mask.numpy() for s in cache]) for cache in (whole, third)]
    assert np.flatnonzero(masks[1]).tolist() == np.flatnonzero(masks[0])[::3].tolist()
