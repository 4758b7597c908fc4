"""Every error that logitcache raises on purpose.

There is one class for each kind of failure. All of them derive from :class:`LogitCacheError`, so a caller can catch
all of them or a single kind. A message says what is wrong, where, and what to try next, in one or two lines; the
command line prints it as it is and exits with status 1.
"""


class LogitCacheError(Exception):
    """The base class of every error that logitcache raises on purpose."""


class LogitCacheWarning(UserWarning):
    """A warning that the user can act on; the command line prints it as one line."""


class ConfigError(LogitCacheError):
    """A setting has a value that is not allowed; the message names the field, the value and what is allowed."""


class MissingDependencyError(LogitCacheError):
    """An optional package is needed; the message names the extra that installs it."""


class DataError(LogitCacheError):
    """The corpus can't be used: a file is missing, empty or of the wrong kind, or a column is missing."""


class RowError(DataError):
    """A single row can't be used; the message names the row. A dump may leave out such rows and count them."""


class ModelError(LogitCacheError):
    """A teacher or student can't be loaded, or can't be used for what was asked."""


class TokenizerMismatchError(LogitCacheError):
    """The cache and the student use different token ids."""


class OutputExistsError(LogitCacheError):
    """The output exists already, and it is not overwritten."""


class ResumeMismatchError(LogitCacheError):
    """An unfinished run was started with other settings or other data than this run."""


class DivergedError(LogitCacheError):
    """Training diverged: the loss is no longer a finite number."""


class StorageError(LogitCacheError):
    """The operating system could not read or write: the disk is full, permission is denied, or the device is gone."""


class CacheNotFoundError(LogitCacheError):
    """There is no finished cache at this place."""


class CacheFormatError(LogitCacheError):
    """A manifest or table isn't valid, or asks for a feature that this version can't read."""


class CorruptCacheError(LogitCacheError):
    """A file of a cache is missing, extra, truncated or altered; the message names the file."""


class MissingFileError(CorruptCacheError):
    """A file of a cache isn't there; the message names it."""


class TargetsError(LogitCacheError):
    """Targets can't be used as asked: their shapes are wrong, or a statistic was not stored."""


class NonFiniteLogitsError(LogitCacheError):
    """The teacher returned NaN or +inf; the message names the sequence and the position."""


class DumpInterruptedError(LogitCacheError):
    """A signal stopped a dump before it was finished; the same command continues it."""


class RemoteError(StorageError):
    """A store refused a request, or did not answer in time."""


class OfflineError(StorageError):
    """A file is not on this machine, and the user did not allow network access."""


class MergeError(LogitCacheError):
    """Caches can't be merged because they differ; the message names each difference."""


class SignatureError(LogitCacheError):
    """A cache is not signed by a trusted key, or a signature is not valid for it."""
