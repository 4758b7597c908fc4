"""Download a model from a hub by its id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logitcache.errors import ModelError
from logitcache.utils.reasons import reason


def fetch(what: str, name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The directory of a hub's model on this machine, with the files that match; downloads those that are missing.

    Args:
        what: the model's role, for the message: teacher, student …
        name: its id.
        patterns: file names, with wildcards.
        revision: a branch, tag or commit.

    Raises:
        ModelError: the hub doesn't have it or can't be reached, and it wasn't downloaded before.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{what} {name} is neither a directory here nor a model that the hub gives: {reason(error)}"
        ) from error
