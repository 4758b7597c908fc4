"""Find the files that hold a model's weights, and check that quantised weights have all their scales."""

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
# transformers loads the first of these that exists. An index names the files.
_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_FLOATS = ("F64", "F32", "F16", "BF16")
_POINTER = b"version https://git-lfs"


def weight_files(who: str, directory: Path) -> list[Path]:
    """The files that transformers reads the weights from, in a fixed order.

    Raises:
        ModelError: there are none, or an index names a file that doesn't exist.
    """
    for name in (_named_in_config(directory), *_NAMES):
        if name and (directory / name).is_file():
            return _indexed(directory / name) if name.endswith(".index.json") else [directory / name]
    for suffix in _SUFFIXES:
        if files := sorted(path for path in directory.glob(f"*{suffix}") if path.is_file()):
            return files
    raise ModelError(f"{who} holds no weights (*.safetensors)")


def _named_in_config(directory: Path) -> str:
    """The file of weights that config.json names; empty if it names none."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # reported when the configuration is read
        return ""
    return str(config.get("transformers_weights") or "") if isinstance(config, dict) else ""


def _indexed(index: Path) -> list[Path]:
    """The files that an index of sharded weights names.

    Raises:
        ModelError: it isn't such an index, or one of the files doesn't exist.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not an index of weights: {error or type(error).__name__}") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise ModelError(f"{index} names {missing[0] if missing else 'no file'}, which is not there")
    return [index.parent / name for name in names]


def check_readable(who: str, directory: Path, *, plain: bool) -> None:
    """Check that every safetensors file is complete, and that its weights are numbers that a model can compute with.

    Args:
        who: the model, for messages.
        directory: where its files are.
        plain: True if the configuration doesn't say that weights are quantised. Then integers and 8-bit floats are
            refused: transformers would use them without their scales.

    Raises:
        ModelError: a file is missing, cut off or not safetensors, or a plain weight isn't floating-point.
    """
    for name, kind in _tensors(weight_files(who, directory)):
        if plain and name.endswith(".weight") and kind.split()[0] not in _FLOATS:
            raise ModelError(
                f"{who}: {name} is {kind} in its files, and its config.json has no quantization_config that says what "
                "these numbers mean"
            )


def check_quantised(who: str, directory: Path) -> None:
    """Check that quantised weights have their scales. transformers loads a weight without them, and gives no error.

    If the weights of a module have the same dtype and shape in several layers, the module must have the same tensors,
    with the same dtypes and shapes, in all these layers.

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
    """Check that a file is GGUF, and that the package that reads it is installed.

    Raises:
        MissingDependencyError: the package isn't installed.
        ModelError: the file isn't GGUF.
    """
    try:
        import gguf  # noqa: F401 - transformers needs it, but its message is less clear
    except ImportError as error:
        raise MissingDependencyError("a GGUF file needs the gguf package: pip install 'logitcache[gguf]'") from error
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{who} is not a GGUF file")


def check_gguf(who: str, path: Path, model: nn.Module) -> None:
    """Check that the model has all biases of a GGUF file. transformers ignores tensors that the model doesn't have.

    Raises:
        ModelError: the file holds more biases than the model.
    """
    from gguf import GGUFReader

    held = sum(tensor.name.endswith(".bias") for tensor in GGUFReader(path).tensors)
    placed = sum(name.endswith("bias") for name, _ in (*model.named_parameters(), *model.named_buffers()))
    if held > placed:
        raise ModelError(
            f"{who} holds {held} biases, and a {type(model).__name__} made from its metadata has {placed}: "
            "transformers doesn't read this file correctly"
        )


def _tensors(files: list[Path]) -> Iterator[tuple[str, str]]:
    """Name, and dtype with shape, of every tensor in safetensors files; other files give none.

    Raises:
        ModelError: one of them can't be read.
    """
    for path in files:
        if path.suffix == ".safetensors":
            try:
                yield from _tensors_of_file(path)
            except SafetensorError as error:
                raise ModelError(_describe_unreadable(path, error)) from error


def _tensors_of_file(path: Path) -> Iterator[tuple[str, str]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            piece = file.get_slice(name)
            yield name, f"{piece.get_dtype()} {piece.get_shape()}"


def _describe_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    if pointer:
        return f"{path} is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`"
    return f"{path} is cut off, or not a safetensors file ({reason(error)}): fetch it again"
