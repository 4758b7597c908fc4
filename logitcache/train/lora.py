"""Choose what is trained: the student's weights, new LoRA adapters, or the student's own adapters (extra ``peft``)."""

from __future__ import annotations

import warnings
from typing import Any

from logitcache.errors import ConfigError, MissingDependencyError
from logitcache.students.adapters import name_base
from logitcache.students.files import find_student
from logitcache.train.config import TrainConfig
from logitcache.utils.reasons import reason


def prepare_student(student: Any, config: TrainConfig) -> Any:
    """The student, prepared for training as the settings say; a PEFT model if adapters are trained.

    Args:
        student: from :func:`logitcache.students.pairing.load_student`; a PEFT model if it was loaded from an adapter.

    Raises:
        MissingDependencyError: peft isn't installed.
        ConfigError: the settings don't fit the student's adapters, the student has no such modules, or its weights
            can't be trained.
    """
    if hasattr(student, "peft_config"):
        _check_same(student, config)
        _check_quantised(student, config, adapters=True)
        return student
    _check_quantised(student, config, adapters=config.lora_rank is not None)
    return student if config.lora_rank is None else _add_lora(student, config)


def _check_same(student: Any, config: TrainConfig) -> None:
    """Check that the settings don't contradict the rank, alpha and modules of the student's adapter.

    Raises:
        ConfigError: they do.
    """
    own = student.peft_config[student.active_adapter]
    targets = getattr(own, "target_modules", None)
    given = config.lora_targets if isinstance(config.lora_targets, str) else set(config.lora_targets)
    asked = {
        "lora_rank": (config.lora_rank, getattr(own, "r", None)),
        "lora_alpha": (config.lora_alpha, getattr(own, "lora_alpha", None)),
        "lora_targets": (None if given == "all-linear" else given, targets),
    }
    for name, (wanted, has) in asked.items():
        if wanted is not None and wanted != has:
            kind = getattr(own.peft_type, "value", own.peft_type)
            shown = sorted(has) if isinstance(has, set) else has
            raise ConfigError(
                f"{name} = {config.model_dump()[name]!r} is not allowed: the student {config.student} is an adapter "
                f"({kind}) with {shown}; leave {name} out to go on with it, or merge it into its base first"
            )


def _check_quantised(student: Any, config: TrainConfig, *, adapters: bool) -> None:
    quantizer = getattr(student, "hf_quantizer", None)
    if quantizer is None:
        return
    method = getattr(quantizer.quantization_config, "quant_method", "")
    method = getattr(method, "value", method)
    if not adapters:
        raise ConfigError(
            f"the weights of the student {config.student} are quantised ({method}) and can't be trained: give "
            "--lora-rank, or a student that isn't quantised"
        )
    if not quantizer.is_trainable:
        raise ConfigError(
            f"the weights of the student {config.student} are quantised ({method}), and adapters on them can't be "
            "trained: give a student that isn't quantised"
        )


def _add_lora(student: Any, config: TrainConfig) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("LoRA needs peft: pip install 'logitcache[peft]'") from error
    assert config.lora_rank is not None
    base = find_student(config.student)
    if base.gguf_file is not None:
        raise ConfigError(
            f"an adapter on a GGUF file can't be loaded elsewhere: make {config.student} a directory with "
            "`logitcache student --layers N` (N all its layers), and train that"
        )
    targets = config.lora_targets
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft reads a name that transformers has replaced.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = get_peft_model(student, lora)
    except ValueError as error:
        raise ConfigError(f"lora_targets = {targets!r}: {reason(error)}") from error
    name_base(model, base)
    return model
