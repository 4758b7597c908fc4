"""Stage 1: make a cache from a teacher and a corpus, with any number of workers that may stop and start at any time."""

from logitcache.dump.config import DumpConfig, make_config
from logitcache.dump.dry_run import DryRun, plan_dump
from logitcache.dump.preview import PreviewedSequence, preview_rows
from logitcache.dump.run import LeftOutWarning, config_path, dump
from logitcache.dump.worker import LowMassWarning

__all__ = [
    "DryRun",
    "DumpConfig",
    "LeftOutWarning",
    "LowMassWarning",
    "PreviewedSequence",
    "config_path",
    "dump",
    "make_config",
    "plan_dump",
    "preview_rows",
]
