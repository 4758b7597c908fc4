"""Caches between teams: push, pull, merge, tag, sign.

Modules are called otherwise than the functions they hold, because both would be attributes of this package.
"""

from logitcache.share.merging import Merged, merge
from logitcache.share.pulling import pull
from logitcache.share.pushing import Transfer, push, tag
from logitcache.share.signing import sign

__all__ = ["Merged", "Transfer", "merge", "pull", "push", "sign", "tag"]
