"""Stage 2: train a student from a cache, with transformers.Trainer."""

from __future__ import annotations

from logitcache.train.compare import split_losses, train_each
from logitcache.train.config import TrainConfig
from logitcache.train.planning import plan
from logitcache.train.result import TrainResult
from logitcache.train.run import is_first_rank, train

__all__ = ["TrainConfig", "TrainResult", "is_first_rank", "plan", "split_losses", "train", "train_each"]
