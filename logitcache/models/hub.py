"""Models named by a hub id: fetched, or refused in one line without waiting for a hub that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logitcache.errors import ModelError
from logitcache.utils.reasons import reason


def fetch(what: str, name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The directory of a hub's model on this machine, with the files that match.

    Args:
        what: what the model is to the caller, for the message: teacher, student …
        name: its id.
        patterns: file names, with wildcards.
        revision: a branch, tag or commit.

    Raises:
        ModelError: the hub doesn't give it, and it wasn't fetched before.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{what} {name} is neither a directory here nor a model that the hub gives: {reason(error)}"
        ) from error
