"""LoRA adapters around a student (extra ``peft``)."""

from __future__ import annotations

from typing import Any

from logitcache.errors import ConfigError, MissingDependencyError
from logitcache.training.config import TrainConfig


def add_lora(student: Any, config: TrainConfig) -> Any:
    """Wrap a student in LoRA adapters; nothing else is trained.

    Raises:
        MissingDependencyError: peft isn't installed.
        ConfigError: no module has the name that was asked for.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("LoRA needs peft: pip install 'logitcache[peft]'") from error
    assert config.lora_rank is not None
    targets = config.lora_targets
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(student, lora)
    except ValueError as error:
        raise ConfigError(f"lora_targets = {targets!r}: {str(error).splitlines()[0]}") from error
