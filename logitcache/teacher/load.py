"""Load a teacher's tokenizer, configuration and weights with transformers, with errors a person can use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from logitcache.errors import ConfigError, MissingDependencyError, ModelError
from logitcache.teacher.identity import TeacherFiles

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_config(files: TeacherFiles, *, trust_remote_code: bool = False) -> Any:
    """The model's configuration; its text part has ``vocab_size`` and ``max_position_embeddings``."""
    from transformers import AutoConfig

    with _explained(files, "configuration"):
        return AutoConfig.from_pretrained(files.directory, trust_remote_code=trust_remote_code, **files.load_kwargs())


def load_tokenizer(files: TeacherFiles, *, trust_remote_code: bool = False) -> Any:
    """The teacher's tokenizer.

    Raises:
        ModelError: there is none, or it isn't a fast one (offsets into the text are needed for chat and completions).
    """
    from transformers import AutoTokenizer

    with _explained(files, "tokenizer"):
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
    from transformers import AutoModelForCausalLM

    kwargs: dict[str, Any] = files.load_kwargs() | {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if files.gguf_file is not None:
        from transformers import GgufConfig

        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    if device_map is not None:
        kwargs["device_map"] = device_map
    if tensor_parallel:
        kwargs["tp_plan"] = "auto"
    if attention is not None:
        kwargs["attn_implementation"] = attention
    with _explained(files, "weights"), _quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(files.directory, **kwargs)
        if device_map is None and not tensor_parallel:
            model = model.to(device)
    return model.eval().requires_grad_(False)


def choose_device(device: str) -> torch.device:
    """``auto`` is this process's GPU where there is one, else the CPU.

    Raises:
        ConfigError: not a device, or one that isn't there.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
        return torch.device("cuda", int(local) % torch.cuda.device_count())
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} can't be used: {str(error).splitlines()[0]}") from error
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars, which would run into ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _explained(files: TeacherFiles, part: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"teacher {files.name} doesn't fit on the device: try --dtype bf16, --device-map auto, or a quantised one"
        ) from error
    except ImportError as error:
        raise MissingDependencyError(f"teacher {files.name}: {str(error).strip().splitlines()[0]}") from error
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"teacher {files.name}: its {part} can't be loaded: {first_line}") from error
