"""The manifest: what a cache holds and where it came from, in one small file whose digest names the cache.

Every model is frozen and refuses unknown fields. A later version of logitcache may write more under ``extensions``,
which readers keep and ignore. If a reader must understand it to read the cache correctly, the writer also lists a name
in ``reader_features``: a reader that doesn't know the name refuses the cache.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from logitcache.errors import CacheFormatError, ConfigError, TargetsError
from logitcache.format.calibrate import Calibration
from logitcache.format.canonical import MAX_INTEGER, canonical_json, parse_canonical
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName
from logitcache.targets.beyond import Beyond
from logitcache.utils.settings import Flag
from logitcache.utils.validation import first_fault

FORMAT_VERSION = 1
#: A manifest has a page or two; the limit protects readers from a hostile file that is huge.
MAX_MANIFEST_BYTES = 1 << 20
#: Features of format 1 that this version can read, and those that it keeps correct when it makes a cache from another.
READER_FEATURES: frozenset[str] = frozenset()
WRITER_FEATURES: frozenset[str] = frozenset()

MANIFEST_NAME = "manifest.json"
MANIFEST_DIGEST_NAME = "manifest.sha256"
TABLE_NAME = "shards.arrow"
SHARDS_DIR = "shards"
TOKENIZER_DIR = "tokenizer"

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Text = Annotated[str, Field(max_length=16_384)]
Name = Annotated[str, Field(min_length=1, max_length=1_024)]
Feature = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._:-]{0,63}$")]
#: Plain file names that are valid on every system; no code, and no hidden files.
TOKENIZER_FILE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\.(json|jsonl|txt|model|jinja|tiktoken|bpe|vocab)$"
TokenizerFile = Annotated[str, Field(pattern=TOKENIZER_FILE_PATTERN)]
_LOCAL_PATH = re.compile(r"^([/~\\.]|[A-Za-z]:[/\\])")


class Frozen(BaseModel):
    """A record that is checked once and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Teacher(Frozen):
    """The model whose distributions are stored.

    Attributes:
        name: hub id, or the last part of a local path, never the path itself.
        revision: the hub's commit, where there is one.
        weights_digest: digest of the weight files' contents.
        dtype: the data type that it computed in, such as ``float32``.
        engine: the engine that ran it, such as ``transformers``.
        head_dtype: the data type of its logits; absent if it is ``dtype``.
    """

    name: Name
    revision: Name | None = None
    weights_digest: Digest | None = None
    dtype: Name
    engine: Name
    head_dtype: Name | None = None

    @field_validator("name")
    @classmethod
    def _no_local_path(cls, name: str) -> str:
        if _LOCAL_PATH.match(name):
            raise ValueError("a local path would show others the names of your directories: give its last part only")
        return name


class Provenance(Frozen):
    """Where the targets came from: everything that their values depend on.

    Attributes:
        teacher: the model.
        tokenizer_digest: see ``logitcache.cache.tokenizer_digest``; equal digests mean equal token ids.
        corpus_digest: digest of the tokenised sequences in order.
        top_k: K, entries kept for each position.
        tail_samples, candidates: how many of the K, the last ones, are a sample of the tail, or candidates with
            the largest logits in a reference model; absent if there are none.
        vocab_size: V, the length of the teacher's logit vector.
        temperature: always 1; losses apply their own.
        positions: which positions have targets, such as ``all`` or ``completion``.
        max_length: length in tokens at which documents were cut into sequences; absent if they weren't.
        settings: further settings that decide the content, by name.
        software: versions of the packages that were used, by name.
        parents: digests of the caches that this one was merged or converted from.
    """

    teacher: Teacher
    tokenizer_digest: Digest
    corpus_digest: Digest
    top_k: Annotated[int, Field(ge=1, le=2**32)]
    tail_samples: Annotated[int, Field(ge=1)] | None = None
    candidates: Annotated[int, Field(ge=1)] | None = None
    vocab_size: Annotated[int, Field(ge=1, le=2**32)]
    temperature: Annotated[float, Field(ge=1, le=1)] = 1.0
    positions: Name
    max_length: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = None
    settings: dict[Name, JsonValue] = Field(default_factory=dict)
    software: dict[Name, Name] = Field(default_factory=dict)
    parents: tuple[Digest, ...] = ()

    @property
    def beyond(self) -> Beyond:
        """Which of the K entries were not chosen by rank."""
        return Beyond(self.tail_samples or 0, self.candidates or 0)

    @property
    def ranked(self) -> int:
        """How many of the K are the teacher's most probable ids."""
        return self.top_k - self.beyond.count

    @model_validator(mode="after")
    def _fits(self) -> Provenance:
        if self.top_k > self.vocab_size:
            raise ValueError(f"top_k {self.top_k} of a vocabulary of {self.vocab_size}")
        try:
            self.beyond.check(self.top_k)
        except TargetsError as error:
            raise ValueError(str(error)) from error
        return self


class Card(Frozen):
    """What a person should know before using the cache: free text, each field optional."""

    licence: Annotated[
        Text | None, Field(description="Licence of the cache, such as CC0-1.0."), Flag(name="--licence")
    ] = None
    corpus: Annotated[Text | None, Field(description="What the corpus is and where it comes from.")] = None
    purpose: Annotated[Text | None, Field(description="What the cache was made for.")] = None
    contact: Annotated[Text | None, Field(description="Whom to ask about the cache.")] = None
    notes: Annotated[Text | None, Field(description="Anything else that a user of the cache should know.")] = None


class Totals(Frozen):
    """Sums over all shards; ``bytes`` are those of the shard files."""

    shards: Count
    sequences: Count
    tokens: Count
    targets: Count
    bytes: Count


class FileRecord(Frozen):
    """Size and SHA-256 of one file."""

    bytes: Count
    sha256: Sha256


def file_record(payload: bytes) -> FileRecord:
    """Size and digest of a file's content."""
    return FileRecord(bytes=len(payload), sha256=hashlib.sha256(payload).hexdigest())


class Manifest(Frozen):
    """The whole manifest. ``docs/manifest.schema.json`` is this model's JSON Schema."""

    format: Literal["logitcache"] = "logitcache"
    format_version: Literal[1] = 1
    reader_features: tuple[Feature, ...] = ()
    writer_features: tuple[Feature, ...] = ()
    provenance: Provenance
    encoding: Encoding
    shard_format: ShardFormatName
    totals: Totals
    shard_table: FileRecord
    tokenizer: dict[TokenizerFile, FileRecord] = Field(default_factory=dict)
    calibration: Calibration | None = None
    card: Card = Card()
    extensions: dict[str, JsonValue] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file's content: canonical JSON, absent fields left out.

        Raises:
            ConfigError: the manifest is larger than a reader accepts, or holds a number that JSON can't hold.
        """
        try:
            raw = canonical_json(self.model_dump(mode="json", exclude_none=True))
        except ValueError as error:
            raise ConfigError(f"the manifest can't be written: {error}") from error
        if len(raw) > MAX_MANIFEST_BYTES:
            raise ConfigError(f"the manifest has {len(raw):,} bytes, at most {MAX_MANIFEST_BYTES:,}: shorten the card")
        return raw


def json_schema() -> str:
    """``docs/manifest.schema.json``: the manifest's JSON Schema."""
    schema = Manifest.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def manifest_digest(raw: bytes) -> str:
    """``sha256:…`` over the manifest's bytes: the name of the cache."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def digest_line(raw: bytes) -> bytes:
    """The content of ``manifest.sha256`` for a manifest of these bytes."""
    return line_of_digest(manifest_digest(raw))


def line_of_digest(digest: str) -> bytes:
    """The content of ``manifest.sha256`` in a cache of this digest, in the form that ``sha256sum --check`` reads."""
    return f"{digest.removeprefix('sha256:')}  {MANIFEST_NAME}\n".encode("ascii")


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """Read a manifest's bytes.

    Args:
        raw: the whole file.
        where: its path, for messages.

    Raises:
        CacheFormatError: not canonical JSON, another version, a feature this version can't read, or a wrong field.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise CacheFormatError(f"{where} has {len(raw):,} bytes; a manifest has at most {MAX_MANIFEST_BYTES:,}")
    try:
        value = parse_canonical(raw)
    except ValueError as error:
        raise CacheFormatError(f"{where} is not a manifest: {error}") from error
    _check_version(value, where)
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise CacheFormatError(f"{where} is not a valid manifest: {first_fault(error)}") from error


def require_writer_features(manifest: Manifest, where: str) -> None:
    """Check that this version may make a new cache from this one.


    Raises:
        CacheFormatError: it has writer features that this version doesn't know; the message names them.
    """
    _refuse_unknown(manifest.writer_features, WRITER_FEATURES, "deriving a cache from it", where)


def _check_version(value: Any, where: str) -> None:
    if not isinstance(value, dict) or value.get("format") != "logitcache":
        raise CacheFormatError(f"{where} is not a manifest of a logitcache cache")
    version = value.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CacheFormatError(
            f"{where} has format version {str(version)[:40]}; this logitcache reads version {FORMAT_VERSION}: "
            "upgrade logitcache, or ask the authors of the cache for this version"
        )
    features = value.get("reader_features", [])
    if isinstance(features, list):
        _refuse_unknown(features, READER_FEATURES, "reading it", where)


def _refuse_unknown(features: Any, known: frozenset[str], purpose: str, where: str) -> None:
    unknown = sorted({str(feature)[:64] for feature in features} - known)
    if unknown:
        raise CacheFormatError(
            f"{where}: {purpose} needs {', '.join(unknown[:5])}, unknown to this logitcache: upgrade logitcache"
        )
