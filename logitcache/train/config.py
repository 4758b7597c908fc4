"""Every setting of a training run, validated once at the border."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from logitcache.errors import ConfigError
from logitcache.stores.url import public_name
from logitcache.stream.order import DEFAULT_WINDOW_TOKENS
from logitcache.utils.validation import first_fault

# TrainingArguments that a setting of ours decides, and which one.
RESERVED = {
    "output_dir": "out",
    "remove_unused_columns": "none: the teacher travels in columns that the Trainer would call unused",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size and micro_batch_size",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "seed": "seed",
    "ignore_data_skip": "none: the stream finds its place by itself",
    "eval_strategy": "eval_cache and eval_every",
    "eval_steps": "eval_every",
    "save_strategy": "checkpoint_every",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "logging_steps": "log_every",
    "logging_strategy": "log_every",
    "disable_tqdm": "none: the command line draws its own bar",
    "bf16": "mixed_precision",
    "fp16": "mixed_precision",
    "average_tokens_across_devices": "none: the loss is always the mean over the global batch's targets",
    "use_liger_kernel": "none: the head is ours",
    "label_smoothing_factor": "none: the targets are soft already",
    "logging_nan_inf_filter": "none: a loss that isn't finite stops the run",
    "load_best_model_at_end": "none: checkpoints are plain students, load the one you want",
    "neftune_noise_alpha": "none: it isn't supported",
    "dataloader_num_workers": "prefetch",
    "auto_find_batch_size": "none: it would change the global batch",
}


class TrainConfig(BaseModel):
    """Settings of ``logitcache.train``; the command line's flags have the same names.

    The defaults are BiLD's where the paper states them (cosine, AdamW 0.9/0.95, weight decay 1e-4, clip 1.0).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: str | tuple[str, ...] = Field(description="the cache to learn from, or a list of them")
    weights: tuple[float, ...] | None = Field(None, description="each cache's share of the tokens, in any unit")
    student: str = Field(description="the student: a model's or adapter's directory, a GGUF file or a hub id")
    out: Path = Field(description="where the trained student goes; must not exist yet")
    loss: str = Field("bild", description="a loss, or a weighted sum such as bild=1.0,cross_entropy=0.1")
    loss_options: dict[str, Any] = Field(default_factory=dict, description="settings of a single loss")
    eval_cache: str | None = Field(None, description="a held-out cache to measure the student against")
    audit: str | None = Field(
        None, description="cache with every id at a few positions: sets s-LD's fill, and tells how true it stays"
    )
    epochs: int = Field(1, ge=1, description="passes over the cache")
    max_steps: int | None = Field(None, ge=1, description="stop after so many optimizer steps")
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate")
    schedule: str = Field("cosine", description="learning-rate schedule, as transformers names them")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps that warm up")
    batch_size: int = Field(16, ge=1, description="rows of an optimizer step, over all ranks")
    micro_batch_size: int | None = Field(None, ge=1, description="rows of one forward pass on one rank")
    pack_tokens: int | None = Field(None, ge=2, description="pack sequences into rows of so many tokens")
    window_tokens: int = Field(DEFAULT_WINDOW_TOKENS, ge=1, description="samples are shuffled within so many tokens")
    min_length: int | None = Field(None, ge=1, description="leave out sequences of fewer tokens")
    max_length: int | None = Field(None, ge=1, description="leave out sequences of more tokens")
    min_mass: float = Field(0.0, ge=0, le=1, description="learn only where the top K cover so much probability")
    min_confidence: float = Field(0.0, ge=0, le=1, description="learn only where the teacher's best is so probable")
    max_confidence: float = Field(1.0, ge=0, le=1, description="learn only where its best is no more probable")
    max_entropy: float | None = Field(None, ge=0, description="learn only where the teacher's entropy is no larger")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW betas")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient clipping; 0 turns it off")
    seed: int = Field(0, ge=0, description="order of samples, dropout, adapters")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="dtype of the student's weights")
    attention: str | None = Field(None, description="transformers' attn_implementation, such as sdpa or eager")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="compute in half precision")
    lora_rank: int | None = Field(None, ge=1, description="train LoRA adapters of this rank only")
    lora_alpha: int | None = Field(None, gt=0, description="LoRA alpha; twice the rank by default")
    lora_targets: str | tuple[str, ...] = Field("all-linear", description="modules that get adapters")
    eval_every: int | None = Field(None, ge=1, description="evaluate every so many steps; once an epoch by default")
    checkpoint_every: int | None = Field(None, ge=0, description="checkpoint steps; once an epoch by default, 0 never")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints to keep")
    log_every: int = Field(1, ge=1, description="log the loss every so many steps")
    prefetch: int = Field(4, ge=0, description="batches made ahead")
    resume: bool = Field(False, description="go on from the newest checkpoint in out")
    write_report: bool = Field(True, description="write report.html, report.json and report.png")
    trainer: dict[str, Any] = Field(default_factory=dict, description="further transformers.TrainingArguments fields")

    @field_validator("cache", "student", "eval_cache", "audit", mode="before")
    @classmethod
    def _paths_too(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(str(one) if isinstance(one, Path) else one for one in value)
        return str(value) if isinstance(value, Path) else value

    @field_serializer("cache", "eval_cache", "audit", when_used="json")
    def _without_passwords(self, value: str | tuple[str, ...] | None) -> str | list[str] | None:
        """What is written beside the student and into its report says no password of a URL."""
        if value is None or isinstance(value, str):
            return None if value is None else public_name(value)
        return [public_name(place) for place in value]

    @field_validator("trainer")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in RESERVED:
                raise ValueError(f"{name} can't be set here; the setting for it is {RESERVED[name]}")
        return value

    @property
    def caches(self) -> tuple[str, ...]:
        """``cache`` as a list."""
        return (self.cache,) if isinstance(self.cache, str) else self.cache

    @model_validator(mode="after")
    def _goes_together(self) -> TrainConfig:
        if not self.caches:
            raise ValueError("cache = () is not allowed: name at least one")
        if self.weights is not None and len(self.weights) != len(self.caches):
            raise ValueError(
                f"weights = {list(self.weights)} is not allowed: give one for each cache, {len(self.caches)} in all"
            )
        return self

    @classmethod
    def parse(cls, settings: dict[str, Any]) -> TrainConfig:
        """Validate settings.

        Raises:
            ConfigError: names the first field that is wrong, its value and what is allowed.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            raise ConfigError(first_fault(error, show_value=True, listed_by="logitcache train --help")) from error
