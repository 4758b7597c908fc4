"""Language models: loaded whole or not at all, and taken apart into body and head."""

from logitcache.models.loading import explained, load_language_model

__all__ = ["explained", "load_language_model"]
