"""The end of a dump: one worker writes the manifest over all shards, and removes the scratch directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from logitcache.cache.publish import finalize_cache, remove_scratch
from logitcache.cache.tokenizer import tokenizer_files
from logitcache.dump.claims import try_claim
from logitcache.dump.corpus import special_tokens
from logitcache.dump.descriptors import Descriptor, read_descriptor
from logitcache.dump.plan import Plan
from logitcache.dump.settings import Job
from logitcache.errors import NonFiniteLogitsError, StorageError
from logitcache.format.calibrate import Calibration
from logitcache.format.manifest import MANIFEST_NAME, Provenance, Teacher
from logitcache.models.dtypes import DTYPES
from logitcache.utils.files import SCRATCH_DIR

_WAIT_SECONDS = 0.2
_CLEARING_ATTEMPTS = 20


def finalise(job: Job, plan: Plan) -> None:
    """Write the manifest. One worker does it; the others wait, or take over if that worker dies.

    Raises:
        StorageError: shards are missing, or the system refused.
        NonFiniteLogitsError: no position had finite logits.
    """
    out = job.config.out
    while not (out / MANIFEST_NAME).exists() or (out / SCRATCH_DIR).exists():
        try:
            claim = try_claim(out, "finalise")
        except FileNotFoundError:
            continue
        if claim is None:
            time.sleep(_WAIT_SECONDS)
            continue
        try:
            if not (out / MANIFEST_NAME).exists():
                _write_manifest(job, plan)
        except StorageError:
            if not (out / MANIFEST_NAME).exists():
                raise
        finally:
            claim.release()
        clear_scratch(out)


def clear_scratch(out: Path) -> None:
    """Remove the scratch directory. Try again if another worker used it at the same moment.

    Raises:
        StorageError: the system still refused at the last attempt.
    """
    for attempt in range(_CLEARING_ATTEMPTS):
        try:
            remove_scratch(out)
        except StorageError:
            if attempt == _CLEARING_ATTEMPTS - 1:
                raise
            time.sleep(_WAIT_SECONDS)
        else:
            return


def _write_manifest(job: Job, plan: Plan) -> None:
    config, settings = job.config, plan.settings
    descriptors = [read_descriptor(config.out, index) for index in range(len(plan))]
    missing = [index for index, descriptor in enumerate(descriptors) if descriptor is None]
    if missing:
        raise StorageError(
            f"{len(missing)} of {len(plan)} shards are not done yet (the first is {missing[0]}): "
            "run the same command without --finalize"
        )
    done = [descriptor for descriptor in descriptors if descriptor is not None]
    entries = [descriptor.entry for descriptor in done if descriptor.entry is not None]
    skipped = sum(descriptor.non_finite for descriptor in done)
    if not entries:
        raise NonFiniteLogitsError("no position of the corpus had finite logits: try --dtype fp32")
    provenance = Provenance(
        teacher=_teacher(job, settings, done[0]),
        tokenizer_digest=settings["tokenizer_digest"],
        corpus_digest=plan.corpus_digest,
        top_k=config.top_k,
        tail_samples=config.tail_samples or None,
        candidates=config.candidates or None,
        vocab_size=done[0].vocab_size,
        positions=plan.positions,
        max_length=config.max_length,
        settings={
            **_recorded_settings(settings),
            **special_tokens(job),
            **plan.facts,
            "rows": plan.tally,
            **({"skipped_non_finite": skipped} if skipped else {}),
        },
        software=settings["software"],
    )
    calibration = done[0].calibration
    finalize_cache(
        config.out,
        entries,
        provenance,
        config.encoding,
        config.shard_format,
        tokenizer_files(job.tokenizer),
        calibration=None if calibration is None else Calibration.model_validate(calibration),
        card=config.card,
    )


def _teacher(job: Job, settings: dict[str, Any], descriptor: Descriptor) -> Teacher:
    return Teacher(
        name=job.files.name,
        revision=job.files.revision,
        weights_digest=settings["weights_digest"],
        dtype=str(DTYPES[job.config.dtype]).removeprefix("torch."),
        engine=job.config.engine,
        head_dtype=descriptor.head_dtype,
    )


_RECORDED = (
    "attention",
    "batch_tokens",
    "device",
    "device_map",
    "generate",
    "long_rows",
    "overlap",
    "reference",
    "shard_tokens",
    "tensor_parallel",
    "template_args",
    "text_column",
)


def _recorded_settings(settings: dict[str, Any]) -> dict[str, Any]:
    recorded = {name: settings[name] for name in _RECORDED if settings[name] not in (None, {})}
    changed = [name for name, default in (("every", 1), ("turns", "all")) if settings[name] != default]
    return recorded | {name: settings[name] for name in changed}
