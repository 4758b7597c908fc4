"""Find a teacher's files, and compute the digest of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.data import hash_file
from logitcache.errors import ModelError
from logitcache.models import refuse_adapter
from logitcache.models.files import require_gguf, weight_files
from logitcache.models.hub import fetch


@dataclass(frozen=True)
class TeacherFiles:
    """A teacher's files in a local directory.

    Attributes:
        name: hub id, or the last part of a local path.
        directory: holds config, weights and tokenizer.
        gguf_file: the file's name in ``directory`` if the weights come from GGUF.
        revision: the hub's commit, where there is one.
    """

    name: str
    directory: Path
    gguf_file: str | None = None
    revision: str | None = None

    def weight_files(self) -> list[Path]:
        """The files that transformers reads the weights from, in a fixed order.

        Raises:
            ModelError: there are none, or an index names a file that doesn't exist.
        """
        if self.gguf_file is not None:
            return [self.directory / self.gguf_file]
        return weight_files(f"teacher {self.directory}", self.directory)

    def load_kwargs(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` that make it load these files."""
        return {"local_files_only": True} | ({} if self.gguf_file is None else {"gguf_file": self.gguf_file})


def find_teacher(teacher: str, revision: str | None = None, *, weights: bool = True) -> TeacherFiles:
    """Resolve a directory, a GGUF file or a hub id; a hub id is downloaded unless the hub's cache has it.

    Without ``weights`` only configuration and tokenizer are fetched from a hub.

    Raises:
        ModelError: it is none of these, or an adapter, with or without its model.
        MissingDependencyError: it is a GGUF file, and the `gguf` package isn't installed.
    """
    path = Path(teacher).expanduser()
    if path.is_dir():
        refuse_adapter("teacher", teacher, path)
        if not (path / "config.json").is_file():
            raise ModelError(f"teacher {teacher} is not a model: the directory has no config.json")
        return TeacherFiles(path.absolute().name, path)
    if path.is_file():
        return _gguf(teacher, path)
    if path.suffix == ".gguf" or path.is_absolute() or teacher.count("/") > 1 or teacher.startswith("."):
        raise ModelError(f"teacher {teacher} doesn't exist")
    return _from_hub(teacher, revision, weights)


def _gguf(teacher: str, path: Path) -> TeacherFiles:
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"teacher {teacher} is not a model: give a model directory, a hub id or a .gguf file")
    require_gguf(f"teacher {teacher}", path)
    return TeacherFiles(path.stem, path.absolute().parent, gguf_file=path.name)


_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken")


def _from_hub(teacher: str, revision: str | None, weights: bool) -> TeacherFiles:
    patterns = [pattern for pattern in _PATTERNS if weights or pattern != "*.safetensors"]
    directory = fetch("teacher", teacher, patterns, revision)
    return TeacherFiles(teacher, directory, revision=directory.name)


def combined_digest(hashes: Sequence[str]) -> str:
    """``sha256:…`` of a sequence of files, from the hex sha256 of each; file names aren't part of it."""
    return "sha256:" + hashlib.sha256("\n".join(hashes).encode("ascii")).hexdigest()


def weights_digest(files: TeacherFiles) -> str:
    """``sha256:…`` of the weight files; it takes about a second for each gigabyte."""
    return combined_digest([hash_file(path) for path in files.weight_files()])
