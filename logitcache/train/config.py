"""All settings of a training run, validated when they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_serializer, field_validator, model_validator

from logitcache.stores.url import public_name
from logitcache.stream.order import DEFAULT_WINDOW_TOKENS
from logitcache.train.reserved import RESERVED
from logitcache.utils.settings import Config, Flag

INPUTS, LOSS, STEPS, POSITIONS = "Caches and student", "Loss", "Steps and batches", "Which samples and positions"
OPTIMIZER, MODEL, WATCH = "Optimizer", "Weights and arithmetic", "Evaluation, checkpoints, report"
AN_EPOCH = "an epoch"


class TrainConfig(Config):
    """The settings of ``lc.train`` and ``logitcache train``; ``docs/reference/settings.md`` lists all of them.

    The defaults are BiLD's where the paper states them (cosine, AdamW 0.9/0.95, weight decay 1e-4, clip 1.0).
    """

    listed_by: ClassVar[str] = "logitcache train --help"

    cache: Annotated[
        str | tuple[str, ...],
        Field(description="The cache to learn from: a directory or a URL; repeat it to mix several."),
        Flag(INPUTS, resume="free"),
    ]
    weights: Annotated[
        tuple[float, ...] | None,
        Field(description="Each cache's share of the tokens, in any unit, such as 0.7,0.3."),
        Flag(INPUTS, default="each cache comes once an epoch", metavar="NUMBERS", as_text=True),
    ] = None
    student: Annotated[
        str,
        Field(description="The student: a model's or adapter's directory, a GGUF file or a hub id."),
        Flag(INPUTS),
    ]
    out: Annotated[
        Path, Field(description="Directory of the trained student; must not exist yet."), Flag(INPUTS, resume="free")
    ]
    loss: Annotated[
        str, Field(description="A loss, or a weighted sum such as bild=1.0,cross_entropy=0.1."), Flag(LOSS)
    ] = "bild"
    loss_options: Annotated[
        dict[str, Any],
        Field(description="Parameter of a single loss, such as temperature=2; repeat it for several."),
        Flag(LOSS),
    ] = Field(default_factory=dict)
    audit: Annotated[
        str | None,
        Field(description="Cache with every id at a few positions, to choose how s-LD estimates missing values."),
        Flag(LOSS),
    ] = None
    epochs: Annotated[int, Field(ge=1, description="Passes over the cache."), Flag(STEPS)] = 1
    max_steps: Annotated[
        int | None,
        Field(ge=1, description="Stop after this many optimizer steps."),
        Flag(STEPS, default="all steps of the epochs"),
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="Rows of an optimizer step, over all ranks."), Flag(STEPS)] = 16
    micro_batch_size: Annotated[
        int | None,
        Field(ge=1, description="Rows of one forward pass on one rank."),
        Flag(STEPS, default="the rank's rows of a step, at most 8", resume="free"),
    ] = None
    pack_tokens: Annotated[
        int | None,
        Field(ge=2, description="Pack sequences into rows of at most this many tokens."),
        Flag(STEPS, default="a row holds one sequence"),
    ] = None
    group_by_length: Annotated[
        bool,
        Field(description="Put rows of similar length into the same micro-batch, within each optimizer step."),
        Flag(STEPS, name="--no-group-by-length", resume="free"),
    ] = True
    window_tokens: Annotated[
        int, Field(ge=1, description="Samples are shuffled within windows of this many tokens."), Flag(STEPS)
    ] = DEFAULT_WINDOW_TOKENS
    prefetch: Annotated[
        int, Field(ge=0, description="Batches that are read in advance."), Flag(STEPS, resume="free")
    ] = 4
    seed: Annotated[
        int, Field(ge=0, description="Seed of the samples' order, of dropout and of new adapters."), Flag(STEPS)
    ] = 0
    min_length: Annotated[
        int | None, Field(ge=1, description="Leave out sequences of fewer tokens."), Flag(POSITIONS)
    ] = None
    max_length: Annotated[
        int | None, Field(ge=1, description="Leave out sequences of more tokens."), Flag(POSITIONS)
    ] = None
    min_mass: Annotated[
        float,
        Field(ge=0, le=1, description="Learn only where the top K hold at least this much probability."),
        Flag(POSITIONS),
    ] = 0.0
    min_confidence: Annotated[
        float,
        Field(ge=0, le=1, description="Learn only where the teacher's best id has at least this probability."),
        Flag(POSITIONS),
    ] = 0.0
    max_confidence: Annotated[
        float,
        Field(ge=0, le=1, description="Learn only where the teacher's best id has at most this probability."),
        Flag(POSITIONS),
    ] = 1.0
    max_entropy: Annotated[
        float | None,
        Field(ge=0, description="Learn only where the teacher's entropy is at most this, in nats."),
        Flag(POSITIONS),
    ] = None
    learning_rate: Annotated[float, Field(gt=0, description="Peak learning rate."), Flag(OPTIMIZER)] = 1e-4
    schedule: Annotated[
        str, Field(description="Learning-rate schedule, as transformers names it."), Flag(OPTIMIZER)
    ] = "cosine"
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="Share of the steps in which the learning rate rises."), Flag(OPTIMIZER)
    ] = 0.05
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay of AdamW."), Flag(OPTIMIZER)] = 1e-4
    betas: Annotated[
        tuple[float, float],
        Field(description="The two betas of AdamW."),
        Flag(OPTIMIZER, metavar="NUMBERS", as_text=True),
    ] = (0.9, 0.95)
    max_grad_norm: Annotated[
        float,
        Field(ge=0, description="Largest norm of the gradients, which are clipped to it; 0 turns it off."),
        Flag(OPTIMIZER),
    ] = 1.0
    trainer: Annotated[
        dict[str, Any],
        Field(description="Further field of transformers.TrainingArguments, such as activation_checkpointing=true."),
        Flag(OPTIMIZER, resume="free"),
    ] = Field(default_factory=dict)
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], Field(description="Data type of the student's weights."), Flag(MODEL)
    ] = "fp32"
    mixed_precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"],
        Field(
            description="Compute in half precision; auto is bf16 for fp32 weights on a GPU that has it, otherwise no."
        ),
        Flag(MODEL),
    ] = "auto"
    attention: Annotated[
        str | None,
        Field(description="Attention implementation of transformers, such as sdpa or eager."),
        Flag(MODEL, default="flash attention on a GPU if it is installed, otherwise transformers' choice"),
    ] = None
    lora_rank: Annotated[
        int | None,
        Field(ge=1, description="Train LoRA adapters of this rank, and leave the weights as they are."),
        Flag(MODEL, default="all weights are trained"),
    ] = None
    lora_alpha: Annotated[
        int | None, Field(gt=0, description="Alpha of the LoRA adapters."), Flag(MODEL, default="twice the rank")
    ] = None
    lora_targets: Annotated[
        str | tuple[str, ...],
        Field(description="Modules that get LoRA adapters, as PEFT names them; repeat it for several."),
        Flag(MODEL),
    ] = "all-linear"
    eval_cache: Annotated[
        str | None, Field(description="A held-out cache to measure the student against."), Flag(WATCH, resume="free")
    ] = None
    eval_every: Annotated[
        int | None,
        Field(ge=1, description="Optimizer steps between two evaluations."),
        Flag(WATCH, default=AN_EPOCH, resume="free"),
    ] = None
    checkpoint_every: Annotated[
        int | None,
        Field(ge=0, description="Optimizer steps between two checkpoints; 0 writes none."),
        Flag(WATCH, default=AN_EPOCH, resume="free"),
    ] = None
    keep_checkpoints: Annotated[
        int, Field(ge=1, description="How many of the newest checkpoints are kept."), Flag(WATCH, resume="free")
    ] = 2
    log_every: Annotated[
        int, Field(ge=1, description="Optimizer steps between two records of the loss."), Flag(WATCH, resume="free")
    ] = 1
    resume: Annotated[
        bool, Field(description="Go on from the newest checkpoint in the output directory."), Flag(WATCH, resume="free")
    ] = False
    write_report: Annotated[
        bool,
        Field(description="Write report.html, report.json and report.png beside the student."),
        Flag(WATCH, name="--no-report", resume="free"),
    ] = True

    @field_validator("cache", "student", "eval_cache", "audit", mode="before")
    @classmethod
    def _paths_too(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(str(one) if isinstance(one, Path) else one for one in value)
        return str(value) if isinstance(value, Path) else value

    @field_validator("weights", "betas", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Parse numbers of the command line, such as ``0.7,0.3``."""
        if not isinstance(value, str):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            each = "for each cache: 0.7,0.3" if info.field_name == "weights" else "for each beta: 0.9,0.95"
            raise ValueError(f"give a number {each}") from None

    @field_serializer("cache", "eval_cache", "audit", when_used="json")
    def _without_passwords(self, value: str | tuple[str, ...] | None) -> str | list[str] | None:
        """Remove passwords from URLs, because the settings are written to files beside the student."""
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
