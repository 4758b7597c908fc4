"""logitcache: dump a teacher's top-k logits once, then distil many students from the cache."""

from logitcache.errors import LogitCacheError
from logitcache.topk import TopK

__version__ = "0.1.0"

__all__ = ["LogitCacheError", "TopK", "__version__"]
