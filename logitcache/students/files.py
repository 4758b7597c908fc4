"""Where a student's weights and tokenizer are: a directory, an adapter and its base, a GGUF file, or a hub id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.errors import ModelError
from logitcache.models.files import require_gguf
from logitcache.models.hub import fetch
from logitcache.utils.reasons import reason

ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
_MODEL_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")


@dataclass(frozen=True)
class StudentFiles:
    """Where a student's files are, in a form that transformers can load.

    Attributes:
        name: the name that the user gave.
        place: a directory, or a hub id.
        gguf_file: name of a GGUF file in the directory ``place``; None for other weights.
        revision: of a hub id.
        base: the base of the adapter in ``place``; None if ``place`` holds a whole model.
    """

    name: str
    place: Path | str
    gguf_file: str | None = None
    revision: str | None = None
    base: StudentFiles | None = None

    def load_kwargs(self) -> dict[str, Any]:
        """Arguments that every ``from_pretrained`` needs to find these files."""
        given = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {name: value for name, value in given.items() if value is not None}

    def tokenizer(self) -> StudentFiles | None:
        """Where the tokenizer is: in the student's directory, else in its base's; None if a local student has none."""
        if isinstance(self.place, str) or self.gguf_file is not None:
            return self
        if any((self.place / name).exists() for name in _TOKENIZER_FILES):
            return self
        return None if self.base is None else self.base.tokenizer()


def find_student(name: str | Path, what: str = "student") -> StudentFiles:
    """Find a student's files by its name. Only small files are read or fetched from the hub.

    Args:
        name: a directory that ``save_pretrained`` wrote, of a model or of an adapter; a GGUF file; a hub id.
        what: what messages call it.

    Raises:
        ModelError: it is none of these, or it is an adapter and its base isn't there.
        MissingDependencyError: it is a GGUF file, and gguf isn't installed.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _gguf(what, str(name), path)
    if path.is_dir():
        if _holds_adapter(what, path):
            return StudentFiles(str(name), path, base=_base_of(what, path))
        if not (path / "config.json").exists():
            raise ModelError(f"{path} is not a model: it has no config.json")
        return StudentFiles(str(name), path)
    if str(name).startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise ModelError(
            f"the {what} {name} does not exist: give a directory that `save_pretrained` wrote, or a hub id"
        )
    return _from_hub(what, str(name))


def _gguf(what: str, name: str, path: Path) -> StudentFiles:
    if path.suffix.lower() != ".gguf":
        raise ModelError(
            f"the {what} {name} is a file, not a model's directory: give a directory that `save_pretrained` wrote, a "
            ".gguf file, or a hub id"
        )
    require_gguf(f"the {what} {name}", path)
    return StudentFiles(name, path.absolute().parent, gguf_file=path.name)


def _from_hub(what: str, name: str, revision: str | None = None) -> StudentFiles:
    directory = fetch(what, name, ("config.json", ADAPTER_CONFIG), revision)
    if (directory / ADAPTER_CONFIG).is_file():
        patterns = ("adapter_*", "*token*", "*.jinja", "vocab*", "merges.txt", "model*.safetensors.index.json")
        directory = fetch(what, name, patterns, revision)
        return StudentFiles(name, directory, base=_base_of(what, directory))
    return StudentFiles(name, name, revision=revision)


def _holds_adapter(what: str, directory: Path) -> bool:
    """True if the directory holds an adapter. (Some trainers also write the base's config.json there.)

    Raises:
        ModelError: it holds both a model and an adapter.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return False
    weights = [path.name for pattern in _MODEL_WEIGHTS for path in directory.glob(pattern)]
    own = sorted(name for name in weights if not name.startswith("adapter_"))
    if own:
        raise ModelError(
            f"the {what} {directory} holds a model ({own[0]}) and an adapter ({ADAPTER_CONFIG}): give each its own "
            "directory, and name the one to use"
        )
    return True


def _base_of(what: str, directory: Path) -> StudentFiles:
    """The base that an adapter names: a path (absolute, or from the adapter's or current directory), or a hub id.

    Raises:
        ModelError: it isn't there, it is an adapter itself, or two directories match.
    """
    try:
        settings = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{directory / ADAPTER_CONFIG} can't be read: {reason(error)}") from error
    advice = f"put its path into base_model_name_or_path of {directory / ADAPTER_CONFIG}"
    if not isinstance(name, str) or not name:
        raise ModelError(f"the adapter {directory} names no base model: {advice}")
    found = {place.resolve(): place for place in (directory / name, Path(name).expanduser()) if place.exists()}
    if len(found) > 1:
        choices = " or ".join(str(place) for place in found)
        raise ModelError(f"the adapter {directory} names the base {name}, which could be {choices}: {advice}")
    if found:
        base = find_student(next(iter(found)), f"base of the adapter {directory}")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"the adapter {directory} belongs to the base {name}, which does not exist: {advice}")
    else:
        try:
            base = _from_hub("base", name, revision)
        except ModelError as error:
            raise ModelError(f"the adapter {directory} needs its base: {error}; fetch it, or {advice}") from error
    if base.base is not None:
        raise ModelError(
            f"the base of the adapter {directory} is an adapter itself ({name}): merge that one into its base"
        )
    return base
