"""Every error that logitcache raises on purpose.

One class a failure, all under :class:`LogitCacheError`, so that a caller can catch the family or the single case.
A message says what is wrong, where, and what to try next, in one or two lines; the command line prints it as it is
and exits with status 1.
"""


class LogitCacheError(Exception):
    """The base of every error the product raises on purpose."""


class LogitCacheWarning(UserWarning):
    """Something that the user can act on; the command line prints it as one line."""


class ConfigError(LogitCacheError):
    """A setting has a value that is not allowed; the message names the field, the value and what is allowed."""


class MissingDependencyError(LogitCacheError):
    """An optional package is needed; the message names the extra that installs it."""


class DataError(LogitCacheError):
    """The corpus can't be used: a file is missing, empty or of the wrong kind, or a column isn't there."""


class RowError(DataError):
    """A single row can't be taken right; the message names the row. A dump may leave such rows out and count them."""


class ModelError(LogitCacheError):
    """A teacher or student can't be loaded, or can't be used for what was asked."""


class TokenizerMismatchError(LogitCacheError):
    """Cache and student don't number tokens alike."""


class OutputExistsError(LogitCacheError):
    """The output is already there and would have been overwritten."""


class ResumeMismatchError(LogitCacheError):
    """An unfinished run was started with other settings, or over other data, than this one."""


class DivergedError(LogitCacheError):
    """Training diverged: the loss is no longer a finite number."""


class StorageError(LogitCacheError):
    """Reading or writing failed below us: no room, no permission, the device went away."""


class CacheNotFoundError(LogitCacheError):
    """There is no finished cache at this place."""


class CacheFormatError(LogitCacheError):
    """A manifest or table isn't valid, or asks for a feature that this version can't read."""


class CorruptCacheError(LogitCacheError):
    """A file of a cache is missing, extra, truncated or altered; the message names the file."""


class MissingFileError(CorruptCacheError):
    """A file of a cache isn't there; the message names it."""


class TargetsError(LogitCacheError):
    """Targets can't serve what is asked of them: wrong shapes, or a statistic that wasn't stored."""


class NonFiniteLogitsError(LogitCacheError):
    """The teacher returned NaN or +inf; the message names the sequence and the position."""


class DumpInterruptedError(LogitCacheError):
    """A signal stopped a dump before its end; the same command goes on where it stopped."""


class RemoteError(StorageError):
    """A store refused, or didn't answer in time."""


class OfflineError(StorageError):
    """Something isn't on this machine, and the network was ruled out."""


class MergeError(LogitCacheError):
    """Caches that don't belong together; the message names each difference."""


class SignatureError(LogitCacheError):
    """A cache isn't signed by a trusted key, or the signature doesn't fit."""
