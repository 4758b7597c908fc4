"""Save a model with its weights as they are now."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_model(model: Any, out: Path, **kwargs: Any) -> None:
    """``save_pretrained``, for a transformers model or a PEFT model around one.

    When transformers saves a model, it reverses the conversions that it made on loading. Weights that were dequantised
    on loading would be quantised again, but the configuration would not say so. So those are saved as they are.

    Args:
        model: the model.
        out: directory to write to.
        kwargs: for ``save_pretrained``.
    """
    if not hasattr(model, "peft_config") and _dequantised(model):
        kwargs["save_original_format"] = False
    model.save_pretrained(out, **kwargs)


def _dequantised(model: Any) -> bool:
    if getattr(model, "hf_quantizer", None) is not None:
        return False
    conversions = getattr(model, "_weight_conversions", None) or ()
    operations = [operation for each in conversions for operation in getattr(each, "operations", None) or ()]
    return any(hasattr(operation, "hf_quantizer") for operation in operations)
