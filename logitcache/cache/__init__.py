"""The cache format: shards of targets, and the directory that holds them."""

from logitcache.cache.arrays import DIGEST_BYTES, ShardArrays
from logitcache.cache.encoding import Encoding
from logitcache.cache.formats import ShardFormatName, decode_shard, encode_shard

__all__ = ["DIGEST_BYTES", "Encoding", "ShardArrays", "ShardFormatName", "decode_shard", "encode_shard"]
