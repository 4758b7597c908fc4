"""Everything that the bytes of a cache depend on: resolved settings, digests of input and teacher."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from logitcache.cache.tokenizer import tokenizer_digest
from logitcache.data import Source, find_sources, hash_file
from logitcache.dump.config import EVERY_ID, DumpConfig
from logitcache.dump.corpus_config import DEFAULT_MAX_LENGTH
from logitcache.dump.reference import find_reference
from logitcache.engines.batch_size import CPU_TOKENS, automatic_batch_tokens
from logitcache.errors import ConfigError, ResumeMismatchError
from logitcache.models.dtypes import DTYPES
from logitcache.models.identity import TeacherFiles, combined_digest, find_teacher
from logitcache.models.placement import weights_by_device
from logitcache.models.probe import longest
from logitcache.models.teacher import choose_device, choose_dtype, load_config, load_tokenizer
from logitcache.utils.device import DEVICES, Devices
from logitcache.utils.settings import resumed_as

_SOFTWARE = ("logitcache", "torch", "transformers", "tokenizers")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Stamp:
    """A file's size, time and hash. If size and time are the same, the file isn't read again."""

    bytes: int
    mtime_ns: int
    sha256: str


@dataclass
class Stamps:
    """Hashes of files by absolute path, so that a resumed dump doesn't hash a large teacher again."""

    known: dict[str, Stamp] = field(default_factory=dict)

    def hash(self, path: Path) -> str:
        """Hex SHA-256 of a file.

        Raises:
            DataError: the file can't be read.
        """
        status = path.stat()
        key = str(path.resolve())
        stamp = self.known.get(key)
        if stamp is None or (stamp.bytes, stamp.mtime_ns) != (status.st_size, status.st_mtime_ns):
            self.known[key] = Stamp(status.st_size, status.st_mtime_ns, hash_file(path))
        return self.known[key].sha256

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the plan."""
        return {key: vars(stamp) for key, stamp in self.known.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Stamps:
        """The hashes that :meth:`to_json` wrote."""
        return cls({key: Stamp(**stamp) for key, stamp in value.items()})


@dataclass(frozen=True, eq=False)
class Job:
    """A dump with its teacher found and every ``auto`` resolved. No weights are loaded yet.

    ``processes`` is the number of processes that the teacher is split over.
    """

    config: DumpConfig
    files: TeacherFiles
    tokenizer: Any
    device: torch.device
    vocab_size: int
    sources: list[Source]
    processes: int = 1
    reference: TeacherFiles | None = None


def resolve(config: DumpConfig, processes: int = 1, *, elsewhere: bool = False, devices: Devices = DEVICES) -> Job:
    """Find teacher and data, and replace every ``auto`` and default by its value.

    ``processes`` is the number of processes that share the teacher's weights. With ``elsewhere`` the dump is planned
    for GPUs of another machine, and the teacher's weights need not be here.

    Raises:
        ModelError, DataError: the teacher or the data can't be found or read.
        ConfigError: the settings don't fit the teacher.
        TokenizerMismatchError: the reference's tokenizer doesn't fit the teacher's.
    """
    sources = find_sources(config.data, kind=config.data_kind)
    files = find_teacher(config.teacher, config.revision, weights=not elsewhere)
    model_config = load_config(files, trust_remote_code=config.trust_remote_code)
    text_config = model_config.get_text_config()
    vocab_size = int(text_config.vocab_size)
    top_k = vocab_size if config.top_k == EVERY_ID else config.top_k
    if top_k > vocab_size:
        raise ConfigError(f"top_k {top_k} is more than the teacher's vocabulary of {vocab_size} ids")
    if top_k == vocab_size and config.beyond.count:
        raise ConfigError("all ids are kept: nothing is left for tail_samples or candidates")
    device = torch.device("cuda") if elsewhere else choose_device(config.device, devices)
    tokenizer = load_tokenizer(files, trust_remote_code=config.trust_remote_code)
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template)
    limit = longest(model_config)
    max_length = config.max_length or min(limit or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    if limit and max_length > limit:
        raise ConfigError(f"max_length {max_length} is more than the {limit} tokens that the teacher takes")
    if config.reserved >= max_length:
        raise ConfigError(f"max_new_tokens {config.reserved} must be below max_length {max_length}")
    dtype = choose_dtype(config.dtype, device, model_config)
    reference = find_reference(config, tokenizer, max_length, vocab_size)
    resolved = config.model_copy(
        update={
            "top_k": top_k,
            "max_length": max_length,
            "batch_tokens": max(config.batch_tokens or CPU_TOKENS, max_length),
            "dtype": dtype,
        }
    )
    job = Job(resolved, files, tokenizer, device, vocab_size, sources, processes, reference)
    return job if elsewhere or config.batch_tokens else _with_fitting_batch(job, text_config, devices)


def _with_fitting_batch(job: Job, text_config: Any, devices: Devices) -> Job:
    """The job with a batch size for the memory that its devices will have beside the weights."""
    config = job.config
    dtype = DTYPES[config.dtype]
    weight_bytes = weights_by_device(
        job.files,
        dtype=dtype,
        device=job.device,
        device_map=config.device_map,
        processes=job.processes,
        trust_remote_code=config.trust_remote_code,
        devices=devices,
    )
    if job.reference is not None:  # it is loaded whole where the teacher takes its tokens
        first = next(iter(weight_bytes))
        weight_bytes[first] += sum(path.stat().st_size for path in job.reference.weight_files())
    tokens = automatic_batch_tokens(weight_bytes, text_config, dtype.itemsize, devices)
    assert config.max_length is not None
    update = {"batch_tokens": max(tokens, config.max_length)}
    return replace(job, config=config.model_copy(update=update))


def _read_template(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or "it is not UTF-8 text").lower()
        raise ConfigError(f"chat_template {path} can't be read: {reason}") from error


def settings_of(job: Job, stamps: Stamps) -> Settings:
    """Everything that the cache's bytes depend on, as plain values. Files without a hash in ``stamps`` are hashed."""
    config = job.config
    shared = config.model_dump(mode="json", include=resumed_as(DumpConfig, "same"))
    return {
        **shared,
        "generate": config.generate.model_dump(mode="json") if config.generate else None,
        "encoding": config.encoding.model_dump(mode="json"),
        "card": config.card.model_dump(mode="json"),
        "device": job.device.type,
        "tensor_parallel": job.processes if config.tensor_parallel else None,
        "teacher": job.files.name,
        "revision": job.files.revision,
        "weights_digest": combined_digest([stamps.hash(path) for path in job.files.weight_files()]),
        "reference": None if job.reference is None else _reference(job.reference, stamps),
        "tokenizer_digest": tokenizer_digest(job.tokenizer),
        "chat_template": getattr(job.tokenizer, "chat_template", None),
        "inputs": [_input(source, stamps) for source in job.sources],
        "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
    }


def _reference(files: TeacherFiles, stamps: Stamps) -> dict[str, str]:
    return {"name": files.name, "weights_digest": combined_digest([stamps.hash(path) for path in files.weight_files()])}


def _input(source: Source, stamps: Stamps) -> dict[str, str]:
    digest = combined_digest([stamps.hash(path) for path in source.files()]) if source.path else source.name
    return {"name": source.name, "digest": digest}


def check_resume(planned: Settings, now: Settings, out: Path) -> None:
    """Check that an unfinished dump was started with the same settings, teacher and input.

    Raises:
        ResumeMismatchError: it wasn't; the message names everything that differs.
    """
    differences = list(_differences(planned, now))
    if differences:
        raise ResumeMismatchError(
            f"the unfinished dump in {out} was started with other settings: {'; '.join(differences)}. "
            f"Use the settings it was started with, or another --out (or delete {out} to start again)"
        )


def _differences(planned: Settings, now: Settings) -> Iterable[str]:
    for name in sorted(planned.keys() | now.keys()):
        before, after = planned.get(name), now.get(name)
        if name == "inputs":
            yield from _input_differences(before or [], after or [])
        elif before != after:
            if name == "weights_digest":
                yield "the teacher's weights have changed"
            elif name in ("tokenizer_digest", "chat_template"):
                yield f"the teacher's {name.removesuffix('_digest').replace('_', ' ')} has changed"
            else:
                yield f"{name} was {_show(before)} and is {_show(after)}"


def _input_differences(before: list[dict[str, str]], after: list[dict[str, str]]) -> Iterable[str]:
    if [item["digest"] for item in before] == [item["digest"] for item in after]:
        return
    if len(before) != len(after):
        yield f"the data had {len(before)} inputs and has {len(after)}"
        return
    for old, new in zip(before, after, strict=True):
        if old["digest"] != new["digest"]:
            if old["name"] == new["name"]:
                yield f"the input {new['name']} has changed"
            else:
                yield f"the input {old['name']} is now {new['name']}"


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None) or "empty"
    return str(value)
