"""The data types of a model's weights and arithmetic, by the names that settings use."""

from __future__ import annotations

from typing import Literal

import torch

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
