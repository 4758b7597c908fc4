"""Settings of a dump: validated once, and split into those that decide the bytes and those that don't."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from logitcache.data import LongRows
from logitcache.data.special_tokens import AUTO
from logitcache.engines.generate import Generation
from logitcache.errors import ConfigError
from logitcache.format.encoding import Encoding
from logitcache.format.manifest import Card
from logitcache.utils.validation import first_fault

#: Longest sequence unless asked otherwise: what the teacher allows, at most this.
DEFAULT_MAX_LENGTH = 2048
#: Entries for what a reference likes best; s-LD compares 8, and some of them are the teacher's top anyway.
DEFAULT_CANDIDATES = 16
#: What a file can be said to be, where its name doesn't tell.
DataKind = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]
#: Stands for the teacher's whole vocabulary until the teacher is known; no vocabulary is larger.
EVERY_ID = 1 << 32


class DumpConfig(BaseModel):
    """What ``lc.dump`` and ``logitcache dump`` take.

    Attributes:
        teacher: a model directory, a hub id, or a ``.gguf`` file.
        engine: what runs the teacher, by name: ``transformers``, or one that a package registers.
        data: files, globs, a saved ``datasets`` directory or a data set's id.
        out: the cache's directory; it must not hold anything yet but an unfinished dump of the same settings.
        top_k: K, entries kept for each position; ``all`` keeps the whole vocabulary, for audit rows.
        tail_samples: how many of the K are drawn from all ids that the others leave out, in proportion to their
            probability, so that ``forward_kl`` follows the full KL on average.
        reference: a student, directory or hub id, that reads the corpus beside the teacher; the ids it likes best are
            kept beyond the teacher's top, so that BiLD finds what it asks for.
        candidates: how many of the K those are; 16 with a reference.
        every: keep the prediction at every so many positions only, counted over the corpus.
        shard_format: ``zarr`` or ``arrow``.
        preset, max_error: the encoding; ``max_error`` in nats.
        statistics: also keep log-partition and logit deviation, so that raw logits come back.
        max_length: longest sequence in tokens; None is the teacher's limit, at most 2,048.
        long_rows: longer rows: ``split`` into several sequences, ``truncate``, or ``drop``; ``auto`` splits documents,
            and truncates chats and completions, whose later pieces would have lost what they answer.
        overlap: tokens that a split row's next sequence repeats as context.
        end_of_text: what ends a plain document: ``auto`` (the tokenizer's end of text), ``none`` or a token.
        bad_rows: rows that can't be taken right ``stop`` the dump, or ``skip`` leaves them out and counts them.
        positions: ``all`` or ``completion``; None is completion for chat and prompt/completion rows, all for others.
        text_column: the column to read; None goes by the columns' names.
        data_kind: what every file of ``data`` is; None goes by the files' names.
        chat_template: file of a template that replaces the tokenizer's own.
        template_args: further variables of the chat template, such as ``enable_thinking``.
        turns: ``all`` assistant turns of a chat are learnt, or the ``last``.
        split: of a data set that has several.
        revision: of a teacher on a hub.
        dtype: arithmetic of the teacher; ``auto`` is the checkpoint's on a GPU, fp32 on a CPU.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
        device_map: handed to transformers, for a teacher that needs several devices.
        tensor_parallel: split each layer of the teacher over all processes that torchrun starts; together they are one
            worker.
        attention: ``attn_implementation`` of transformers.
        trust_remote_code: run code that comes with the teacher. Off unless you know the code.
        batch_tokens: tokens of one forward pass, filling included; None is 2,048 on a CPU, and what a GPU has room for.
        shard_tokens: tokens after which a shard ends; what a crash can cost at most.
        skip_non_finite: leave positions with NaN or infinite logits out, instead of stopping.
        min_mass: warn if the top K cover less than this share of the probability.
        generate: let the teacher answer the rows' prompts, and keep the distributions of its own answers.
        card: licence and notes for whoever uses the cache.
        rank, world_size: where this worker begins, of how many; any number may come and go.
        finalize: only write the manifest over shards that are all there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: Annotated[str, Field(min_length=1)]
    engine: Annotated[str, Field(min_length=1)] = "transformers"
    data: Annotated[tuple[str, ...], Field(min_length=1)]
    out: Path
    top_k: Annotated[int, Field(ge=1, le=EVERY_ID)] = 64
    tail_samples: Annotated[int, Field(ge=0)] = 0
    reference: str | None = None
    candidates: Annotated[int, Field(ge=0)] = 0
    every: Annotated[int, Field(ge=1)] = 1
    shard_format: Literal["zarr", "arrow"] = "zarr"
    preset: Literal["exact", "half", "compact", "tiny"] = "compact"
    max_error: float | None = None
    statistics: bool = False
    max_length: Annotated[int, Field(ge=2)] | None = None
    long_rows: LongRows = "auto"
    overlap: Annotated[int, Field(ge=0)] = 0
    end_of_text: Annotated[str, Field(min_length=1)] = AUTO
    bad_rows: Literal["stop", "skip"] = "stop"
    positions: Literal["all", "completion"] | None = None
    text_column: str | None = None
    data_kind: DataKind | None = None
    chat_template: Path | None = None
    template_args: dict[str, JsonValue] = Field(default_factory=dict)
    turns: Literal["all", "last"] = "all"
    split: str = "train"
    revision: str | None = None
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    device_map: str | None = None
    tensor_parallel: bool = False
    attention: str | None = None
    trust_remote_code: bool = False
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    shard_tokens: Annotated[int, Field(ge=1, le=16_777_216)] = 65_536
    skip_non_finite: bool = False
    min_mass: Annotated[float, Field(ge=0, le=1)] = 0.8
    generate: Generation | None = None
    card: Card = Card()
    rank: Annotated[int, Field(ge=0)] = 0
    world_size: Annotated[int, Field(ge=1)] = 1
    finalize: bool = False

    @model_validator(mode="before")
    @classmethod
    def _candidates_of_a_reference(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("reference") and values.get("candidates") is None:
            return values | {"candidates": DEFAULT_CANDIDATES}
        return values

    @field_validator("teacher", "reference", mode="before")
    @classmethod
    def _paths_too(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else tuple(map(str, value))

    @field_validator("top_k", mode="before")
    @classmethod
    def _or_all(cls, value: Any) -> Any:
        return EVERY_ID if value == "all" else value

    @field_validator("out")
    @classmethod
    def _local(cls, value: Path) -> Path:
        if ":/" in str(value):
            raise ValueError("a dump writes to a directory; send the finished cache on with `logitcache push`")
        return value.expanduser()

    @model_validator(mode="after")
    def _together(self) -> DumpConfig:
        if self.rank >= self.world_size:
            raise ValueError(f"rank {self.rank} must be below world_size {self.world_size}")
        for name in ("tail_samples", "candidates"):
            if getattr(self, name) >= self.top_k:
                raise ValueError(f"{name} {getattr(self, name)} must be below top_k {self.top_k}, of which they are")
        if bool(self.candidates) != (self.reference is not None):
            raise ValueError(f"candidates {self.candidates} needs a reference that likes them, and the other way round")
        if self.candidates and self.tail_samples:
            raise ValueError("candidates and tail_samples don't go together: a row holds one or the other")
        if self.max_length is not None and self.overlap >= self.max_length:
            raise ValueError(f"overlap {self.overlap} must be below max_length {self.max_length}")
        if self.generate is not None and self.overlap:
            raise ValueError("overlap has no meaning with generate: prompts aren't split")
        if self.tensor_parallel and self.device_map is not None:
            raise ValueError("device_map and tensor_parallel are two ways to use several devices: choose one")
        if self.generate is not None and self.long_rows in ("split", "truncate"):
            raise ValueError(f"long_rows {self.long_rows} has no meaning with generate: a prompt is whole; use drop")
        if self.generate is not None and self.every > 1:
            raise ValueError("every has no meaning with generate: answers are kept whole")
        Encoding(preset=self.preset, max_error=self.max_error)
        return self

    @property
    def reserved(self) -> int:
        """Tokens that each planned sequence may still grow by."""
        return self.generate.max_new_tokens if self.generate else 0

    @property
    def encoding(self) -> Encoding:
        """How values are stored."""
        return Encoding(preset=self.preset, max_error=self.max_error)


def make_config(settings: dict[str, Any]) -> DumpConfig:
    """Check settings.

    Raises:
        ConfigError: names the first field that is wrong, its value, and what is allowed.
    """
    try:
        return DumpConfig(**settings)
    except ValidationError as error:
        raise ConfigError(first_fault(error, show_value=True, listed_by="logitcache dump --help")) from error
