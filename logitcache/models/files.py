"""Which files of a model's directory hold its weights, and whether what they say of quantised weights is complete."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from logitcache.errors import MissingDependencyError, ModelError
from logitcache.utils.reasons import reason

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# What transformers loads from a directory: the first of these that is there. An index names the files.
_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_FLOATS = ("F64", "F32", "F16", "BF16")
_POINTER = b"version https://git-lfs"


def weight_files(who: str, directory: Path) -> list[Path]:
    """The files that transformers reads the weights from, in a fixed order, and no others that lie beside them.

    Raises:
        ModelError: there are none, or an index names one that isn't there.
    """
    for name in (_named_in_config(directory), *_NAMES):
        if name and (directory / name).is_file():
            return _indexed(directory / name) if name.endswith(".index.json") else [directory / name]
    for suffix in _SUFFIXES:
        if files := sorted(path for path in directory.glob(f"*{suffix}") if path.is_file()):
            return files
    raise ModelError(f"{who} holds no weights (*.safetensors)")


def _named_in_config(directory: Path) -> str:
    """The file of weights that config.json names itself; empty if it doesn't."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever reads the configuration says so
        return ""
    return str(config.get("transformers_weights") or "") if isinstance(config, dict) else ""


def _indexed(index: Path) -> list[Path]:
    """The files that an index of sharded weights names.

    Raises:
        ModelError: it isn't such an index, or one of the files isn't there.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not an index of weights: {error or type(error).__name__}") from error
    lacking = [name for name in names if not (index.parent / name).is_file()]
    if lacking or not names:
        raise ModelError(f"{index} names {lacking[0] if lacking else 'no file'}, which is not there")
    return [index.parent / name for name in names]


def check_readable(who: str, directory: Path, *, plain: bool) -> None:
    """Every file of safetensors must be whole, and hold numbers that a model computes with.

    Args:
        who: the model, for messages.
        directory: where its files are.
        plain: the configuration doesn't say that weights are quantised. Integers and 8-bit floats, which transformers
            would take as they are, without their scales, are refused then.

    Raises:
        ModelError: a file is missing, cut or something else, or a plain weight isn't of floating-point numbers.
    """
    for name, kind in _tensors(weight_files(who, directory)):
        if plain and name.endswith(".weight") and kind.split()[0] not in _FLOATS:
            raise ModelError(
                f"{who}: {name} is {kind} in its files, and its config.json has no quantization_config that says what "
                "these numbers stand for"
            )


def check_quantised(who: str, directory: Path) -> None:
    """A quantised weight stands with its scales; transformers takes one without them, or with some, as it is.

    Modules at the same place in different layers whose weights have one dtype and shape must have the same tensors
    beside them, of the same dtypes and shapes.

    Raises:
        ModelError: two of them differ.
    """
    groups: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    for name, kind in _tensors(weight_files(who, directory)):
        parent, _, leaf = name.rpartition(".")
        modules[parent][leaf] = kind
    for parent, leaves in modules.items():
        groups[re.sub(r"\d+", "*", parent), leaves.get("weight", "")][parent] = leaves
    for members in groups.values():
        usual = max(members.values(), key=lambda leaves: list(members.values()).count(leaves))
        for parent, leaves in members.items():
            if leaves != usual:
                leaf = min(leaves.items() ^ usual.items())[0]
                has, wants = (kinds.get(leaf, "nothing") for kinds in (leaves, usual))
                raise ModelError(
                    f"{who}: {parent}.{leaf} is {has} in its files, and {wants} beside the same quantised weight in "
                    "other layers"
                )


def require_gguf(who: str, path: Path) -> None:
    """The file must be GGUF, and the package that reads it must be there.

    Raises:
        MissingDependencyError: it isn't.
        ModelError: the file is something else.
    """
    try:
        import gguf  # noqa: F401 - transformers needs it, and says so less clearly
    except ImportError as error:
        raise MissingDependencyError("a GGUF file needs the gguf package: pip install 'logitcache[gguf]'") from error
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{who} is not a GGUF file")


def check_gguf(who: str, path: Path, model: nn.Module) -> None:
    """transformers passes over tensors of a GGUF file that it has no place for; a bias among them changes the model.

    Raises:
        ModelError: the file holds more biases than the model.
    """
    from gguf import GGUFReader

    held = sum(tensor.name.endswith(".bias") for tensor in GGUFReader(path).tensors)
    placed = sum(name.endswith("bias") for name, _ in (*model.named_parameters(), *model.named_buffers()))
    if held > placed:
        raise ModelError(
            f"{who} holds {held} biases, and a {type(model).__name__} made from its metadata has {placed}: "
            "transformers doesn't read this file rightly"
        )


def _tensors(files: list[Path]) -> Iterator[tuple[str, str]]:
    """Name, and dtype with shape, of every tensor in files of safetensors; of other files none.

    Raises:
        ModelError: one of them can't be read.
    """
    for path in files:
        if path.suffix == ".safetensors":
            try:
                yield from _headed(path)
            except SafetensorError as error:
                raise ModelError(_unreadable(path, error)) from error


def _headed(path: Path) -> Iterator[tuple[str, str]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            piece = file.get_slice(name)
            yield name, f"{piece.get_dtype()} {piece.get_shape()}"


def _unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    if pointer:
        return f"{path} is a pointer of Git LFS, and not the weights: fetch them with `git lfs pull`"
    return f"{path} is cut, or not a file of safetensors ({reason(error)}): fetch it again"
