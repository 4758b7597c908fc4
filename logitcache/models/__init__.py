"""Load language models with all their weights, check them on a few tokens, and find their body and head."""

from logitcache.models.finding import find_head
from logitcache.models.gate import check_language_model
from logitcache.models.head import Head, device_of, evaluating, without_adapter
from logitcache.models.loading import build_empty, explained, load_language_model, refuse_adapter

__all__ = [
    "Head",
    "build_empty",
    "check_language_model",
    "device_of",
    "evaluating",
    "explained",
    "find_head",
    "load_language_model",
    "refuse_adapter",
    "without_adapter",
]
