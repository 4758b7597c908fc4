"""Settings of a dump. Each is defined once, as a field with type, default, help, checks and flag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from logitcache.dump.corpus_config import CorpusConfig
from logitcache.dump.teacher_config import TeacherConfig
from logitcache.engines.generate import Generation
from logitcache.format.encoding import Encoding, Preset
from logitcache.format.formats import ShardFormatName
from logitcache.format.manifest import Card
from logitcache.targets.beyond import Beyond
from logitcache.utils.settings import Flag

#: Default number of a reference's candidates. s-LD compares 8 ids, and some of those are in the teacher's top too.
DEFAULT_CANDIDATES = 16
#: ``top_k`` for the whole vocabulary, until the teacher is known; no vocabulary is larger.
EVERY_ID = 1 << 32
TARGETS, ANSWERS, CACHE, CARD, WORKERS = "Targets", "Generated answers", "Cache", "Card", "Workers"


class DumpConfig(CorpusConfig, TeacherConfig):
    """The settings of ``lc.dump`` and ``logitcache dump``; ``docs/reference/settings.md`` lists them all."""

    listed_by: ClassVar[str] = "logitcache dump --help"

    top_k: Annotated[
        int,
        Field(ge=1, le=EVERY_ID, description="Entries kept for each position; all keeps the whole vocabulary."),
        Flag(TARGETS, metavar="K|all", as_text=True),
    ] = 64
    tail_samples: Annotated[
        int,
        Field(
            ge=0,
            description="How many of the K entries are drawn at random from the ids outside the top, in proportion to "
            "their probability, so that the mean gradient of forward_kl is that of the full KL.",
        ),
        Flag(TARGETS),
    ] = 0
    reference: Annotated[
        str | None,
        Field(
            description="Student (a model directory or hub id) that also reads the corpus; its most probable ids are "
            "kept in addition to the teacher's, because BiLD also compares the student's top ids."
        ),
        Flag(TARGETS, resume="content"),
    ] = None
    candidates: Annotated[
        int,
        Field(ge=0, description="How many of the K entries are the reference's most probable ids."),
        Flag(TARGETS, default=f"{DEFAULT_CANDIDATES} with a reference, 0 without"),
    ] = 0
    every: Annotated[
        int,
        Field(ge=1, description="Keep the targets of one in this many positions, counted over the corpus."),
        Flag(TARGETS),
    ] = 1
    statistics: Annotated[
        bool,
        Field(description="Also keep log-partition and logit deviation, which NormKD and DKD need."),
        Flag(TARGETS),
    ] = False
    skip_non_finite: Annotated[
        bool,
        Field(description="Leave out positions with NaN or infinite logits, instead of stopping."),
        Flag(TARGETS),
    ] = False
    min_mass: Annotated[
        float,
        Field(ge=0, le=1, description="Warn if the top K hold less than this share of the probability."),
        Flag(TARGETS, resume="free"),
    ] = 0.8
    generate: Annotated[
        Generation | None,
        Field(description="Let the teacher answer the rows' prompts, and keep the targets of its own answers."),
        Flag(ANSWERS, resume="content"),
    ] = None
    out: Annotated[
        Path,
        Field(
            description="Directory of the new cache, or of an unfinished dump with the same settings; the command line "
            "also takes a URL, as `logitcache push` does."
        ),
        Flag(CACHE, as_text=True, resume="free"),
    ]
    shard_format: Annotated[
        ShardFormatName, Field(description="Format of the shards."), Flag(CACHE, name="--format")
    ] = "zarr"
    preset: Annotated[
        Preset, Field(description="Encoding of log-probs, from lossless to smallest."), Flag(CACHE, resume="content")
    ] = "compact"
    max_error: Annotated[
        float | None,
        Field(description="Largest error of a stored log-prob, in nats; for compact and tiny only."),
        Flag(CACHE, default="1/64 for compact, 1/16 for tiny", resume="content"),
    ] = None
    shard_tokens: Annotated[
        int,
        Field(
            ge=1,
            le=16_777_216,
            description="Tokens after which a shard ends; after a crash a worker repeats at most one shard.",
        ),
        Flag(CACHE),
    ] = 65_536
    card: Annotated[
        Card,
        Field(description="What a user of the cache should know, such as its licence."),
        Flag(CARD, prefix="card_", no_flag="each of its fields has one", resume="content"),
    ] = Card()
    rank: Annotated[
        int,
        Field(ge=0, description="Number of this worker, from 0; torchrun and Slurm set it."),
        Flag(WORKERS, resume="free"),
    ] = 0
    world_size: Annotated[
        int,
        Field(ge=1, description="Number of workers, which may change at any time; torchrun and Slurm set it."),
        Flag(WORKERS, resume="free"),
    ] = 1
    finalize: Annotated[
        bool,
        Field(description="Only write the manifest; all shards must be finished already."),
        Flag(WORKERS, resume="free"),
    ] = False

    @property
    def beyond(self) -> Beyond:
        """How many of the K entries are not chosen by rank."""
        return Beyond(self.tail_samples, self.candidates)

    @model_validator(mode="before")
    @classmethod
    def _set_default_candidates(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("reference") and values.get("candidates") is None:
            return values | {"candidates": DEFAULT_CANDIDATES}
        return values

    @field_validator("reference", mode="before")
    @classmethod
    def _reference_to_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("top_k", mode="before")
    @classmethod
    def _parse_all(cls, value: Any) -> Any:
        return EVERY_ID if value == "all" else value

    @field_validator("out")
    @classmethod
    def _check_local(cls, value: Path) -> Path:
        if ":/" in str(value):
            raise ValueError("a dump writes to a directory; send the finished cache on with `logitcache push`")
        return value.expanduser()

    @model_validator(mode="after")
    def _check_combinations(self) -> DumpConfig:
        if self.rank >= self.world_size:
            raise ValueError(f"rank {self.rank} must be below world_size {self.world_size}")
        for name in ("tail_samples", "candidates"):
            if getattr(self, name) >= self.top_k:
                raise ValueError(f"{name} {getattr(self, name)} must be below top_k {self.top_k}, of which they are")
        if bool(self.candidates) != (self.reference is not None):
            raise ValueError(f"candidates {self.candidates} needs a reference, and a reference needs candidates")
        if self.candidates and self.tail_samples:
            raise ValueError("candidates and tail_samples don't go together: a row holds one or the other")
        if self.generate is not None and self.overlap:
            raise ValueError("overlap has no meaning with generate: prompts aren't split")
        if self.generate is not None and self.long_rows in ("split", "truncate"):
            raise ValueError(f"long_rows {self.long_rows} has no meaning with generate: a prompt is whole; use drop")
        if self.generate is not None and self.every > 1:
            raise ValueError("every has no meaning with generate: answers are kept whole")
        Encoding(preset=self.preset, max_error=self.max_error)
        return self

    @property
    def reserved(self) -> int:
        """Most tokens that an answer may add to each planned sequence."""
        return self.generate.max_new_tokens if self.generate else 0

    @property
    def encoding(self) -> Encoding:
        """How log-probs are stored."""
        return Encoding(preset=self.preset, max_error=self.max_error)


def make_config(settings: dict[str, Any]) -> DumpConfig:
    """Check settings. Raises what :meth:`DumpConfig.parse` raises."""
    return DumpConfig.parse(settings)
