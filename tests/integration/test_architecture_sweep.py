"""Architectures of different kinds through the command that sweeps over all of them, so that it can't rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
# Attention, learned positions, a state, both with experts, latent attention, a capped head, a head of several modules,
# image and text, a prefix that names the wrong module, fewer logits than rows of the head; rotary frequencies that a
# longer row changes; not causal by kind or by a setting; an encoder and a decoder.
WORKING = (
    "llama",
    "gpt2",
    "mamba",
    "jamba",
    "deepseek_v3",
    "gemma2 (capped)",
    "bert (is_decoder)",
    "qwen2_vl",
    "llama4",
    "inkling_text (unpadded vocabulary)",
)
PARTLY = ("phi3 (longrope)",)
REFUSED = ("bert", "gemma3_text (bidirectional)", "t5gemma2")
PACKED = {"llama": "right", "gpt2": "right", "mamba": "refused", "jamba": "refused"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The records by name, and the page."""
    place = tmp_path_factory.mktemp("sweep")
    command = [sys.executable, "-m", "benchmarks.architectures", "--only", *WORKING, *PARTLY, *REFUSED]
    command += ["--json", place / "records.json", "--markdown", place / "page.md"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    records = json.loads((place / "records.json").read_text())
    return {record["name"]: record for record in records}, (place / "page.md").read_text()


def test_outcomes(swept: tuple[dict[str, Any], str]) -> None:
    records, _ = swept
    found = {name: record["outcome"] for name, record in records.items()}
    assert found == {
        **dict.fromkeys(WORKING, "works"),
        **dict.fromkeys(PARTLY, "partly refused"),
        **dict.fromkeys(REFUSED, "refused"),
    }
    assert {name: records[name]["packed"]["outcome"] for name in PACKED} == PACKED


def test_models_notice_their_context(swept: tuple[dict[str, Any], str]) -> None:
    """Else a wrong context would pass unseen."""
    records, _ = swept
    assert min(records[name]["context"] for name in WORKING) > 0.1


def test_the_page_names_every_architecture(swept: tuple[dict[str, Any], str]) -> None:
    _, page = swept
    assert f"| works | {len(WORKING)} |" in page
    assert f"| refused | {len(REFUSED)} |" in page
    assert all(f"| {name} |" in page for name in (*WORKING, *PARTLY, *REFUSED))
    assert "not causal" in page
