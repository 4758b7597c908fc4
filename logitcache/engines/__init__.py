"""Engines run a teacher on token ids, and give its top-k distributions."""

from logitcache.engines.base import Capabilities, Engine, EngineFactory, EngineInfo, EngineSettings
from logitcache.engines.generate import Generation
from logitcache.engines.registry import check_capabilities, get, names, open_engine, register
from logitcache.engines.team import Team, team

__all__ = [
    "Capabilities",
    "Engine",
    "EngineFactory",
    "EngineInfo",
    "EngineSettings",
    "Generation",
    "Team",
    "check_capabilities",
    "get",
    "names",
    "open_engine",
    "register",
    "team",
]
