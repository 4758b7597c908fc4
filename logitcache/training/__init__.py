"""Stage 2: a student is trained from a cache, with transformers.Trainer."""

from __future__ import annotations

from logitcache.training.config import TrainConfig
from logitcache.training.run import TrainResult, plan, train

__all__ = ["TrainConfig", "TrainResult", "plan", "train"]
