"""Find engines by name, and refuse what an engine can't do before it is opened."""

from __future__ import annotations

from typing import Any

from logitcache.engines.base import Capabilities, Engine, EngineFactory, EngineSettings
from logitcache.engines.transformers_engine import CAN, NAME, open_transformers
from logitcache.errors import ConfigError, ModelError
from logitcache.utils.registry import Registry

#: Packages offer engines by entry points of this group; each names an :class:`EngineFactory`.
GROUP = "logitcache.engines"

#: Capabilities, each with the flag that needs it.
_FLAGS = {
    "statistics": "--statistics",
    "tail_samples": "--tail-samples",
    "candidates": "--reference",
    "generation": "--generate",
    "tensor_parallel": "--tensor-parallel",
}


def _check(name: str, value: Any) -> EngineFactory:
    if not isinstance(value, EngineFactory):
        raise ConfigError(f"an engine is registered as an EngineFactory, and this is {value!r}")
    return value


_ENGINES: Registry[EngineFactory] = Registry("engine", GROUP, _check)


def register(name: str, factory: EngineFactory) -> None:
    """Make another engine available to ``--engine`` and ``DumpConfig.engine``.

    Raises:
        ConfigError: the name is taken.
    """
    _ENGINES.register(name, factory)


def names() -> list[str]:
    """The names of all engines."""
    return _ENGINES.names()


def get(name: str) -> EngineFactory:
    """The factory of the engine with this name.

    Raises:
        ConfigError: there is no such engine, or its package can't be imported.
    """
    return _ENGINES.get(name)


def check_capabilities(name: str, wanted: Capabilities) -> None:
    """Check that the engine of this name can do what is wanted, before anything is loaded.

    Raises:
        ConfigError: it can't, and the message names the flag; or there is no such engine.
    """
    _refuse(name, get(name).can, wanted)


def open_engine(name: str, settings: EngineSettings, *, generation: bool = False) -> Engine:
    """Open the engine of this name, with its teacher loaded.

    Args:
        name: as registered.
        settings: the engine's settings.
        generation: True if it will answer prompts.

    Raises:
        ConfigError: there is no such engine, or it can't do what the settings need.
        ModelError: the teacher can't be used.
    """
    wanted = Capabilities(
        statistics=settings.statistics,
        tail_samples=settings.beyond.tail_samples > 0,
        candidates=settings.beyond.candidates > 0,
        generation=generation,
        tensor_parallel=settings.tensor_parallel,
    )
    check_capabilities(name, wanted)
    engine = get(name).open(settings)
    info = engine.info
    if info.name != name:
        raise ConfigError(f"the engine {name} calls itself {info.name}: the cache would name the wrong engine")
    _refuse(name, info.can, wanted)
    if settings.top_k > info.vocab_size:
        raise ModelError(f"top-k {settings.top_k} is more than the teacher's vocabulary of {info.vocab_size} ids")
    return engine


def _refuse(name: str, can: Capabilities, wanted: Capabilities) -> None:
    lacking = [flag for what, flag in _FLAGS.items() if getattr(wanted, what) and not getattr(can, what)]
    if lacking:
        raise ConfigError(
            f"the engine {name} doesn't support {', '.join(lacking)}: leave {'it' if len(lacking) == 1 else 'them'} "
            "out, or use another --engine"
        )


register(NAME, EngineFactory(open_transformers, CAN))
