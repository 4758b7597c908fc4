"""The engine of a dump: checked before anything is read, and opened when there is something to compute."""

from __future__ import annotations

from logitcache.dump.config import DumpConfig
from logitcache.dump.settings import Job
from logitcache.engines import Capabilities, Engine, EngineSettings, check_capabilities, open_engine
from logitcache.models.dtypes import DTYPES


def check_engine(config: DumpConfig) -> None:
    """Check that the engine can do what the settings ask for, before anything is read.

    Raises:
        ConfigError: it can't (the message names the flag), or there is no such engine.
    """
    wanted = Capabilities(
        statistics=config.statistics,
        tail_samples=config.beyond.tail_samples > 0,
        candidates=config.beyond.candidates > 0,
        generation=config.generate is not None,
        tensor_parallel=config.tensor_parallel,
    )
    check_capabilities(config.engine, wanted)


def open_teacher(job: Job) -> Engine:
    """The job's engine, with the teacher loaded.

    Raises:
        ConfigError, ModelError: the engine can't do what is asked, or the teacher can't be used.
    """
    config = job.config
    assert config.batch_tokens is not None
    settings = EngineSettings(
        teacher=job.files,
        top_k=config.top_k,
        device=job.device,
        dtype=DTYPES[config.dtype],
        batch_tokens=config.batch_tokens,
        beyond=config.beyond,
        reference=job.reference,
        statistics=config.statistics,
        device_map=config.device_map,
        tensor_parallel=config.tensor_parallel,
        attention=config.attention,
        trust_remote_code=config.trust_remote_code,
        wide_head=config.head_dtype == "fp32",
    )
    return open_engine(config.engine, settings, generation=config.generate is not None)
