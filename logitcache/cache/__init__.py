"""The cache format: shards of targets, and the directory that holds them."""

from logitcache.cache.arrays import DIGEST_BYTES, ShardArrays, sequence_digest
from logitcache.cache.calibrate import Calibration, calibrate
from logitcache.cache.convert import Converted, convert_cache
from logitcache.cache.encoding import Encoding
from logitcache.cache.formats import ShardFormatName, decode_shard, encode_shard
from logitcache.cache.manifest import Card, Manifest, Provenance, Teacher, require_writer_features
from logitcache.cache.opening import open_cache
from logitcache.cache.publish import finalize_cache, publish_shard, remove_scratch
from logitcache.cache.reader import Cache
from logitcache.cache.sequence import CachedSequence
from logitcache.cache.table import ShardEntry
from logitcache.cache.tokenizer import tokenizer_digest, tokenizer_files
from logitcache.cache.verify import Fault, VerifyReport, verify_cache

__all__ = [
    "DIGEST_BYTES",
    "Cache",
    "CachedSequence",
    "Calibration",
    "Card",
    "Converted",
    "Encoding",
    "Fault",
    "Manifest",
    "Provenance",
    "ShardArrays",
    "ShardEntry",
    "ShardFormatName",
    "Teacher",
    "VerifyReport",
    "calibrate",
    "convert_cache",
    "decode_shard",
    "encode_shard",
    "finalize_cache",
    "open_cache",
    "publish_shard",
    "remove_scratch",
    "require_writer_features",
    "sequence_digest",
    "tokenizer_digest",
    "tokenizer_files",
    "verify_cache",
]
