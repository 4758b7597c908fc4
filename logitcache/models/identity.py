"""Which teacher this is: where its files lie, and a digest of its weights and tokenizer."""

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
    """A teacher resolved to a local directory.

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
        """The files that transformers reads the weights from, in a fixed order, and no others that lie beside them.

        Raises:
            ModelError: there are none, or an index names one that isn't there.
        """
        if self.gguf_file is not None:
            return [self.directory / self.gguf_file]
        return weight_files(f"teacher {self.directory}", self.directory)

    def load_kwargs(self) -> dict[str, Any]:
        """What every ``from_pretrained`` needs to find these files, and nothing else."""
        return {"local_files_only": True} | ({} if self.gguf_file is None else {"gguf_file": self.gguf_file})


def find_teacher(teacher: str, revision: str | None = None) -> TeacherFiles:
    """Resolve a directory, a GGUF file or a hub id; a hub id is downloaded unless the hub's cache has it.

    Raises:
        ModelError: it is none of these, or an adapter, with or without its model.
        MissingDependencyError: a GGUF file, and the `gguf` package isn't there.
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
    return _from_hub(teacher, revision)


def _gguf(teacher: str, path: Path) -> TeacherFiles:
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"teacher {teacher} is not a model: give a model directory, a hub id or a .gguf file")
    require_gguf(f"teacher {teacher}", path)
    return TeacherFiles(path.stem, path.absolute().parent, gguf_file=path.name)


_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken")


def _from_hub(teacher: str, revision: str | None) -> TeacherFiles:
    directory = fetch("teacher", teacher, _PATTERNS, revision)
    return TeacherFiles(teacher, directory, revision=directory.name)


def combined_digest(hashes: Sequence[str]) -> str:
    """``sha256:…`` of a sequence of files, from each file's own hex sha256; names don't count."""
    return "sha256:" + hashlib.sha256("\n".join(hashes).encode("ascii")).hexdigest()


def weights_digest(files: TeacherFiles) -> str:
    """``sha256:…`` over the weight files; streamed, about a second a gigabyte."""
    return combined_digest([hash_file(path) for path in files.weight_files()])
