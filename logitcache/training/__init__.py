"""Stage 2: a student is trained from a cache, with transformers.Trainer."""

from __future__ import annotations

from logitcache.training.compare import split_losses, train_each
from logitcache.training.config import TrainConfig
from logitcache.training.run import TrainResult, is_first_rank, plan, train

__all__ = ["TrainConfig", "TrainResult", "is_first_rank", "plan", "split_losses", "train", "train_each"]
