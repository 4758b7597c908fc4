"""logitcache: dump a teacher's top-k logits once, then distil many students from the cache."""

from logitcache import losses
from logitcache.cache import Cache, CachedSequence
from logitcache.cache import open_cache as open
from logitcache.errors import LogitCacheError
from logitcache.topk import TopK

__version__ = "0.1.0"

__all__ = ["Cache", "CachedSequence", "LogitCacheError", "TopK", "__version__", "losses", "open"]
