"""Settings of a dump's corpus: which rows are read, and how they become token sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from logitcache.data import LongRows
from logitcache.data.special_tokens import AUTO
from logitcache.utils.settings import Config, Flag

#: Default limit of a sequence in tokens, if the teacher allows that many.
DEFAULT_MAX_LENGTH = 2048
#: The kinds of data files.
DataKind = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]
CORPUS = "Corpus"


class CorpusConfig(Config):
    """The settings of :class:`logitcache.DumpConfig` about the corpus."""

    data: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="File, glob, saved data set or a data set's id; repeat it for several."),
        Flag(CORPUS, resume="content"),
    ]
    data_kind: Annotated[
        DataKind | None,
        Field(description="Kind of all data files, instead of by their names."),
        Flag(CORPUS, default="by the files' names"),
    ] = None
    split: Annotated[str, Field(description="Split to read if a data set has several."), Flag(CORPUS)] = "train"
    text_column: Annotated[
        str | None, Field(description="Column to read."), Flag(CORPUS, default="by the columns' names")
    ] = None
    positions: Annotated[
        Literal["all", "completion"] | None,
        Field(description="Positions that get targets: all, or those of the completion (what the assistant says)."),
        Flag(CORPUS, default="completion for chats and prompt/completion rows, all for others"),
    ] = None
    turns: Annotated[
        Literal["all", "last"],
        Field(description="Assistant turns of a chat that get targets: all, or only the last one."),
        Flag(CORPUS),
    ] = "all"
    chat_template: Annotated[
        Path | None,
        Field(description="File of a chat template that replaces the tokenizer's own."),
        Flag(CORPUS, default="the tokenizer's", resume="content"),
    ] = None
    template_args: Annotated[
        dict[str, JsonValue],
        Field(description="Variable of the chat template, such as enable_thinking=false; repeat it for several."),
        Flag(CORPUS),
    ] = Field(default_factory=dict)
    max_length: Annotated[
        int | None,
        Field(ge=2, description="Longest sequence in tokens."),
        Flag(CORPUS, default=f"what the teacher takes, at most {DEFAULT_MAX_LENGTH}"),
    ] = None
    long_rows: Annotated[
        LongRows,
        Field(
            description="What to do with rows longer than max_length; auto splits documents into several "
            "sequences, and truncates chats and completions."
        ),
        Flag(CORPUS),
    ] = "auto"
    overlap: Annotated[
        int, Field(ge=0, description="Tokens of a split row that its next sequence repeats as context."), Flag(CORPUS)
    ] = 0
    end_of_text: Annotated[
        str,
        Field(
            min_length=1,
            description="Token that ends a plain document: auto (the tokenizer's end of text), none, or a token.",
        ),
        Flag(CORPUS),
    ] = AUTO
    bad_rows: Annotated[
        Literal["stop", "skip"],
        Field(description="What to do at a row that can't be used: stop the dump, or skip the row and count it."),
        Flag(CORPUS),
    ] = "stop"

    @field_validator("data", mode="before")
    @classmethod
    def _data_to_tuple(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else tuple(map(str, value))

    @model_validator(mode="after")
    def _check_overlap(self) -> CorpusConfig:
        if self.max_length is not None and self.overlap >= self.max_length:
            raise ValueError(f"overlap {self.overlap} must be below max_length {self.max_length}")
        return self
