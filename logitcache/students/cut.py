"""Make a student from a bigger model by keeping some of its layers. Width, embeddings and head stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import ConfigError, ModelError, OutputExistsError
from logitcache.models import evaluating
from logitcache.models.head import run
from logitcache.models.probe import probe_ids, same
from logitcache.students.files import find_student
from logitcache.students.pairing import load_student, load_student_tokenizer
from logitcache.students.saving import save_model
from logitcache.utils.atomic import atomic_directory
from logitcache.utils.progress import Report, silent
from logitcache.utils.reasons import reason

# Entries of a configuration that are the number of layers.
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def even_layers(total: int, keep: int) -> tuple[int, ...]:
    """Choose ``keep`` of ``total`` layers at even distances, with the first and the last.

    Raises:
        ConfigError: ``keep`` is not from 1 to ``total``.
    """
    if not 1 <= keep <= total:
        raise ConfigError(f"layers is {keep}; the model has {total}: give a number from 1 to {total}")
    if keep == 1:
        return (0,)
    return tuple(round(index * (total - 1) / (keep - 1)) for index in range(keep))


def make_student(
    teacher: str | Path,
    out: str | Path,
    *,
    layers: int | Sequence[int],
    importance_cache: str | Path | None = None,
    importance_tokens: int = 2048,
    report: Report = silent,
) -> tuple[int, ...]:
    """Write a student made of some of a model's layers.

    Args:
        teacher: a directory, GGUF file or hub id of a causal language model, or of one for image and text, whose text
            layers are cut.
        out: the student's directory; must not exist yet. It gets the teacher's tokenizer too.
        layers: how many layers to keep, or their indices.
        importance_cache: with a number of layers, keep the layers that change the hidden state most on this cache's
            text, and the first and last, instead of layers at even distances (block influence, 1 − cos(in, out):
            ShortGPT, arXiv 2403.03853).
        importance_tokens: how many tokens of that text to run.
        report: called with progress in tokens.

    Returns:
        The layers that were kept, counted from 0.

    Raises:
        OutputExistsError: ``out`` exists.
        ModelError: the teacher can't be loaded, its layers aren't a plain list, or the saved student doesn't load as
            the same model because its layers depend on removed ones.
        ConfigError: there are fewer layers, or a list of layers was given with ``importance_cache``.
    """
    out = Path(out)
    if out.exists():
        raise OutputExistsError(f"{out} exists: choose another --out, or remove it")
    if not isinstance(layers, int) and importance_cache is not None:
        raise ConfigError("importance chooses layers itself: give a number of layers, not a list")
    model = load_student(teacher, what="teacher")
    if hasattr(model, "peft_config"):
        raise ModelError(f"the teacher {teacher} is an adapter: merge it into its base, and cut that")
    stack = find_layers(model)
    if not isinstance(layers, int):
        kept = _check_layers(layers, len(stack))
    elif importance_cache is not None:
        even_layers(len(stack), layers)
        influence = block_influence(model, importance_cache, importance_tokens, report)
        kept = most_influential(influence, layers)
    else:
        kept = even_layers(len(stack), layers)
    keep_layers(model, kept)
    _save(model, teacher, out)
    return kept


def find_layers(model: Any) -> nn.ModuleList:
    """The model's list of text layers, not those of a vision encoder.

    Raises:
        ModelError: the model has no list of modules as long as the configuration's number of layers.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(stacks) > 1:
        ran = _modules_run(model)
        stacks = [stack for stack in stacks if all(layer in ran for layer in stack)]
    if not stacks:
        raise ModelError(f"{type(model).__name__} has no plain list of {count} layers; only such models can be cut")
    return max(stacks, key=lambda stack: sum(value.numel() for value in stack.parameters()))


def _modules_run(model: Any) -> set[nn.Module]:
    """The modules that run when the model gets a few tokens of text."""
    ran: set[nn.Module] = set()
    handles = [module.register_forward_hook(lambda module, *_: ran.add(module)) for module in model.modules()]
    try:
        _logits(model)
    finally:
        for handle in handles:
            handle.remove()
    return ran


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Logits ``[1, T, V]`` of a few tokens."""
    with evaluating(model):
        return run(model, probe_ids(model)[None])


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Keep only some layers of a model, in place, and change its configuration to match."""
    stack = find_layers(model)
    total = len(stack)
    layers = [stack[index] for index in kept]
    del stack[:]
    stack.extend(layers)
    for index, layer in enumerate(layers):
        # Attention layers store their own index, for the key-value cache.
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.__dict__["layer_idx"] = index
    config = model.config.get_text_config()
    for name, value in list(vars(config).items()):
        # A list of token ids may have the same length by chance.
        if isinstance(value, (list, tuple)) and len(value) == total and "token" not in name:
            setattr(config, name, type(value)(value[index] for index in kept))
    for name in _COUNTS:
        if name in vars(config):
            setattr(config, name, len(kept))
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = min(config.max_window_layers, len(kept))


@torch.no_grad()
def block_influence(model: Any, cache_path: str | Path, tokens: int, report: Report = silent) -> list[float]:
    """How much each layer changes the hidden state: the mean of 1 − cos(input, output) over some text, per layer."""
    from logitcache.cache.opening import open_place

    stack = find_layers(model)
    sums = [0.0] * len(stack)

    def watch(index: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            before: Tensor = inputs[0] if inputs else keywords["hidden_states"]
            after: Tensor = output[0] if isinstance(output, tuple) else output
            sums[index] += float((1 - nn.functional.cosine_similarity(before, after, dim=-1)).sum())

        return hook

    handles = [layer.register_forward_hook(watch(index), with_kwargs=True) for index, layer in enumerate(stack)]
    done = 0
    try:
        model.eval()
        for sequence in open_place(cache_path):
            model(input_ids=sequence.token_ids[None], use_cache=False)
            done += len(sequence)
            report("Measuring layers", min(done, tokens), tokens, "tokens")
            if done >= tokens:
                break
    finally:
        for handle in handles:
            handle.remove()
    return [value / max(1, done) for value in sums]


def most_influential(influence: Sequence[float], keep: int) -> tuple[int, ...]:
    """The first and the last layer, and between them the layers with the largest influence; ascending."""
    total = len(influence)
    if keep == 1:
        return (0,)
    inner = sorted(range(1, total - 1), key=lambda index: (-influence[index], index))[: keep - 2]
    return tuple(sorted({0, total - 1, *inner}))


def _check_layers(layers: Sequence[int], total: int) -> tuple[int, ...]:
    kept = tuple(layers)
    if not kept or any(not 0 <= layer < total for layer in kept) or list(kept) != sorted(set(kept)):
        raise ConfigError(
            f"layers {','.join(map(str, kept)) or 'none'}: give different layers, ascending, from 0 to {total - 1}"
        )
    return kept


def _save(model: Any, teacher: str | Path, out: Path) -> None:
    """Write a temporary directory, load it again, then rename it, so that no incomplete or wrong model is left."""
    tokenizer = load_student_tokenizer(find_student(teacher, "teacher"), "teacher")
    if tokenizer is None:
        raise ModelError(
            f"the teacher {teacher} has no tokenizer, and its student needs one: put the tokenizer's files into the "
            "same directory"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(out) as temporary:
        save_model(model, temporary)
        tokenizer.save_pretrained(temporary)
        _check_saved(model, temporary)


def _check_saved(model: Any, saved: Path) -> None:
    """Check that the saved student gives the same logits: layers may share values, or depend on their index.

    Raises:
        ModelError: it doesn't, or can't be loaded.
    """
    what = f"{type(model).__name__} can't be cut to these layers, which need others"
    try:
        ours, again = _logits(model), _logits(load_student(saved))
    except Exception as error:
        raise ModelError(f"{what}: {reason(error).replace(str(saved), 'of these layers')}") from error
    if not same(again, ours, tolerance=1e-3):
        raise ModelError(f"{what}: loaded again, it gives other logits")
