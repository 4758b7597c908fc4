"""Load a teacher's tokenizer, configuration and weights with transformers, with clear errors."""

from __future__ import annotations

from typing import Any

import torch

from logitcache.errors import ConfigError, ModelError
from logitcache.models import explained, load_language_model
from logitcache.models.dtypes import DTYPES, Dtype
from logitcache.models.identity import TeacherFiles
from logitcache.utils.device import DEVICES, Devices, local_device
from logitcache.utils.reasons import reason


def load_config(files: TeacherFiles, *, trust_remote_code: bool = False) -> Any:
    """The model's configuration; its text part has ``vocab_size``.

    Raises:
        ModelError: there is none, or it names no vocabulary.
    """
    from transformers import AutoConfig

    with explained("teacher", files.name, "configuration"):
        config = AutoConfig.from_pretrained(files.directory, trust_remote_code=trust_remote_code, **files.load_kwargs())
    if not isinstance(getattr(config.get_text_config(), "vocab_size", None), int):
        raise ModelError(
            f"teacher {files.name} names no vocab_size in its config.json ({config.model_type}): a model that predicts "
            "the next token is needed"
        )
    return config


def load_tokenizer(files: TeacherFiles, *, trust_remote_code: bool = False) -> Any:
    """The teacher's tokenizer.

    Raises:
        ModelError: there is none, or it isn't a fast one (offsets into the text are needed for chat and completions).
    """
    from transformers import AutoTokenizer

    with explained("teacher", files.name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            files.directory, trust_remote_code=trust_remote_code, **files.load_kwargs()
        )
    if not tokenizer.is_fast:
        raise ModelError(f"teacher {files.name} has a slow tokenizer; one with a tokenizer.json is needed")
    return tokenizer


def load_model(
    files: TeacherFiles,
    *,
    dtype: torch.dtype,
    device: torch.device,
    device_map: str | None = None,
    tensor_parallel: bool = False,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The teacher's weights, in evaluation mode, on ``device``, spread by ``device_map``, or split over processes.

    Raises:
        ModelError: the files don't make a causal language model, or don't fit on the device.
    """
    kwargs: dict[str, Any] = files.load_kwargs() | {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if device_map is not None:
        kwargs["device_map"] = device_map
    if tensor_parallel:
        kwargs["tp_plan"] = "auto"
    if attention is not None:
        kwargs["attn_implementation"] = attention
    model = load_language_model("teacher", files.name, files.directory, **kwargs)
    if device_map is None and not tensor_parallel:
        with explained("teacher", files.name, "weights"):
            model = model.to(device)
    return model.requires_grad_(False)


def choose_device(device: str, devices: Devices = DEVICES) -> torch.device:
    """``auto`` is this process's GPU if there is one, else the CPU; ``cuda`` is this process's GPU.

    Raises:
        ConfigError: it is not a device, or not on this machine.
    """
    if device == "auto":
        device = "cuda" if devices.count("cuda") else "cpu"
    try:
        chosen = torch.device(device)
        if chosen == torch.device(chosen.type):  # without an index
            chosen = local_device(chosen.type, devices)
        devices.check(chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} can't be used: {reason(error)}") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device, config: Any) -> Dtype:
    """``auto`` is the checkpoint's own dtype on a GPU; on a CPU fp32, as half precision is many times slower there."""
    if dtype in DTYPES:
        return dtype  # type: ignore[return-value]  # the keys of DTYPES are Dtype's values
    if device.type == "cpu":
        return "fp32"
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    for name, value in DTYPES.items():
        if own == value:
            return name  # type: ignore[return-value]
    return "bf16"
