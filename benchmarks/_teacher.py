"""The teacher that benchmarks run, and the options they share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

REPO = Path(__file__).resolve().parent.parent
DATA = REPO / "examples" / "data"
TEACHER = Path(os.environ.get("LOGITCACHE_TEACHER", REPO / ".models" / "SmolLM2-135M-Instruct"))


def teacher_parser(description: str | None) -> argparse.ArgumentParser:
    """With ``--teacher`` and ``--threads``; more may be added."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="see examples/get_teacher.py")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with torch's threads set; leaves with status 1 and a message where there is no teacher."""
    options = parser.parse_args()
    if not options.teacher.exists():
        parser.exit(1, f"no teacher at {options.teacher}: run examples/get_teacher.py, or give --teacher\n")
    torch.set_num_threads(options.threads)
    return options


def load(teacher: Path) -> tuple[Any, Any]:
    """The model in float32, in evaluation mode, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(teacher)
