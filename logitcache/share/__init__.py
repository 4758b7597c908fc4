"""Share caches between teams: push, pull, merge, tag, sign.

A module and its function have different names, because both would be attributes of this package.
"""

from logitcache.share.merging import Merged, merge
from logitcache.share.pulling import pull
from logitcache.share.pushing import Transfer, push, tag
from logitcache.share.signing import sign

__all__ = ["Merged", "Transfer", "merge", "pull", "push", "sign", "tag"]
