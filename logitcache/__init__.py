"""logitcache: dump a teacher's top-k logits once, then distil many students from the cache."""

from logitcache import losses
from logitcache.cache.opening import open_place as open
from logitcache.cache.reader import Cache
from logitcache.cache.sequence import CachedSequence
from logitcache.dump import DryRun, DumpConfig, dump, plan_dump
from logitcache.errors import LogitCacheError
from logitcache.evaluate.measure import Metrics, evaluate
from logitcache.stream import Batch, Stream, stream
from logitcache.targets.topk import TopK
from logitcache.train import TrainConfig, TrainResult, train

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Cache",
    "CachedSequence",
    "DryRun",
    "DumpConfig",
    "LogitCacheError",
    "Metrics",
    "Stream",
    "TopK",
    "TrainConfig",
    "TrainResult",
    "__version__",
    "dump",
    "evaluate",
    "losses",
    "open",
    "plan_dump",
    "stream",
    "train",
]
