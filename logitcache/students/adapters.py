"""Attach a PEFT adapter to its base for further training, and check that its file has every tensor."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import MissingDependencyError, ModelError
from logitcache.models.head import evaluating
from logitcache.students.files import StudentFiles
from logitcache.utils.reasons import reason

_NAME = "default"
_PREFIX = "base_model.model."


def attach_adapter(base: Any, files: StudentFiles) -> Any:
    """A PEFT model around ``base`` with the adapter of ``files``. Only the adapter is trainable.

    Raises:
        MissingDependencyError: peft isn't installed.
        ModelError: this kind of adapter isn't supported, or its file doesn't fit.
    """
    directory = Path(files.place)
    model = empty_adapter(base, files)
    _load(model, directory)
    _check_whole(model, directory)
    assert files.base is not None
    name_base(model, files.base)
    return model


def empty_adapter(base: Any, files: StudentFiles) -> Any:
    """The same without the adapter's weights, which are those of a new adapter. ``base`` may be on the meta device.

    Raises:
        MissingDependencyError, ModelError: as :func:`attach_adapter` raises.
    """
    try:
        from peft import PeftConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("an adapter needs peft: pip install 'logitcache[peft]'") from error
    directory = Path(files.place)
    try:
        config = PeftConfig.from_pretrained(str(directory))
        config.inference_mode = False
        _check_kind(directory, config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks below cover what PEFT warns about
            model = get_peft_model(base, config)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the adapter {directory} doesn't fit its base: {reason(error)}") from error
    if hasattr(model.base_model, "update_and_allocate"):
        raise ModelError(
            f"the adapter {directory} is {_kind(config)}, which changes its ranks as it is trained: {_MERGE}"
        )
    return model


def name_base(model: Any, base: StudentFiles) -> None:
    """Make a PEFT model save the absolute path of its base, so that it is found from any directory."""
    place = base.place if isinstance(base.place, str) else str((base.place / (base.gguf_file or "")).absolute())
    config = model.peft_config[_NAME]
    config.base_model_name_or_path, config.revision = place, base.revision


_MERGE = "merge it into its base, and train LoRA adapters on that"


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _check_kind(directory: Path, config: Any) -> None:
    if config.is_prompt_learning:
        raise ModelError(
            f"the adapter {directory} is {_kind(config)}, which adds virtual tokens to the text; LoRA and other "
            "adapters of layers can be used"
        )
    if config.task_type not in (None, "CAUSAL_LM"):
        raise ModelError(f"the adapter {directory} was trained for {config.task_type}, not to predict the next token")
    if getattr(config, "alora_invocation_tokens", None):
        raise ModelError(f"the adapter {directory} is active after certain tokens only (aLoRA), which is not supported")


def _load(model: Any, directory: Path) -> None:
    """Load the adapter's tensors from its file. They are NaN before, so a tensor that PEFT skips is found.

    Raises:
        ModelError: a tensor is missing, has another shape, has no place, or isn't finite.
    """
    from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights

    own: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    with torch.no_grad():
        for tensor in own.values():
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
    try:
        _check_base_weights(model, load_peft_weights(str(directory), device="cpu"), own, directory)
        result = model.load_adapter(str(directory), _NAME, is_trainable=True, torch_device="cpu")
    except ModelError:
        raise
    except KeyError as error:
        raise ModelError(f"the adapter {directory} lacks the tensor {error.args[0]}") from error
    except Exception as error:
        raise ModelError(f"the adapter {directory} can't be loaded: {reason(error)}") from error
    if result.unexpected_keys:
        raise ModelError(
            f"the adapter {directory} holds tensors that have no place in it: {_join_names(result.unexpected_keys)}"
        )
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing = [name for name, tensor in own.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if missing:
        raise ModelError(f"the adapter {directory} lacks tensors, or they aren't finite: {_join_names(missing)}")


def _check_base_weights(model: Any, given: dict[str, Tensor], own: dict[str, Tensor], directory: Path) -> None:
    """Check that embeddings saved with an adapter that doesn't train them equal the base's: they aren't saved again."""
    base: nn.Module = model.get_base_model()
    weights = base.state_dict()
    for name, tensor in given.items():
        plain = name.removeprefix(_PREFIX)
        held = None if name in own else weights.get(plain)
        if held is None:
            continue
        if held.shape != tensor.shape:
            raise ModelError(
                f"the adapter {directory} was made for a base whose {plain} is "
                f"{list(tensor.shape)}, and it is {list(held.shape)}: resize the base's vocabulary and save it first"
            )
        if not torch.equal(held.float().cpu(), tensor.float()):
            raise ModelError(f"the adapter {directory} also carries other weights of its base ({plain}): {_MERGE}")


@torch.no_grad()
def _check_whole(model: Any, directory: Path) -> None:
    """Check that the model inside the PEFT model gives the same logits: training and evaluation run the inner one."""
    base = model.get_base_model()
    with evaluating(model):
        ids = torch.arange(1, 9, device=base.get_input_embeddings().weight.device)[None]
        try:
            whole = model(input_ids=ids, use_cache=False).logits
            inner = base(input_ids=ids, use_cache=False).logits
        except Exception as error:
            raise ModelError(f"the adapter {directory} can't run on its base: {reason(error)}") from error
    if not torch.allclose(whole, inner, rtol=0, atol=0, equal_nan=True):
        kind = _kind(model.peft_config[_NAME])
        raise ModelError(f"the adapter {directory} is {kind}, which does more than change layers: {_MERGE}")


def _join_names(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
