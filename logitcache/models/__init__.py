"""Language models: loaded whole or not at all, tried on a few tokens, and taken apart into body and head."""

from logitcache.models.finding import find_head
from logitcache.models.gate import check_language_model
from logitcache.models.head import Head, device_of, evaluating, without_adapter
from logitcache.models.loading import explained, load_language_model, refuse_adapter

__all__ = [
    "Head",
    "check_language_model",
    "device_of",
    "evaluating",
    "explained",
    "find_head",
    "load_language_model",
    "refuse_adapter",
    "without_adapter",
]
