"""Load a language model, teacher or student: every weight from its files, or one clear error.

transformers gives weights that a checkpoint lacks random numbers, and only logs it. Here it is an error. The
configuration decides the class: it is the class that saved the checkpoint, if one of the automatic classes for text
knows it. A checkpoint for images and text is loaded whole, and only its text part is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from logitcache.errors import MissingDependencyError, ModelError
from logitcache.models.files import check_gguf, check_quantised, check_readable
from logitcache.models.weights import check_loaded
from logitcache.utils.reasons import reason

# In order of preference, if the configuration doesn't name the class that saved it.
_AUTOMATIC = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")


def load_language_model(what: str, name: str, place: str | Path, **kwargs: Any) -> Any:
    """Load a model that predicts the next token, in evaluation mode, with every weight from the checkpoint.

    Args:
        what: the model's role, for messages: teacher, student …
        name: the user's name for it, for messages.
        place: a directory of ``save_pretrained``, the directory of a GGUF file (with ``gguf_file``), or a hub id.
        kwargs: for ``from_pretrained``: ``dtype``, ``attn_implementation``, ``device_map``, ``gguf_file``, ….

    Raises:
        ModelError: there is no such model; it doesn't predict the next token; a weight is missing or of another shape;
            the directory holds an adapter; it doesn't fit on the device.
        MissingDependencyError: a package is needed to read it.
    """
    import transformers

    refuse_adapter(what, name, place)
    if kwargs.get("gguf_file") is not None:
        kwargs.setdefault("quantization_config", transformers.GgufConfig(dequantize=True))
    kwargs.setdefault("trust_remote_code", False)  # without it transformers asks at the terminal
    # So that from_pretrained returns which weights have another shape, instead of logging a table.
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with explained(what, name, "weights"), _quiet() as told:
        config = _configuration(place, kwargs)
        quantised = bool(getattr(config, "quantization_config", None))
        if Path(place).is_dir() and "gguf_file" not in kwargs:
            # Code that comes with a model may have its own number formats.
            check_readable(f"{what} {name}", Path(place), plain=not quantised and not hasattr(config, "auto_map"))
        loader = _class_for(what, name, config)
        try:
            model, found = loader.from_pretrained(str(place), **kwargs)
        except RuntimeError as error:
            raise _conversion_error(what, name, told) or error from error
    check_loaded(what, name, model, found)
    if "gguf_file" in kwargs:
        check_gguf(f"{what} {name}", Path(place) / kwargs["gguf_file"], model)
    elif quantised and Path(place).is_dir():
        check_quantised(f"{what} {name}", Path(place))
    return model.eval()


def build_empty(what: str, name: str, place: str | Path, **kwargs: Any) -> Any:
    """The model without its weights, on the meta device, from its configuration alone. It takes no memory.

    Args:
        what, name, place: as for :func:`load_language_model`.
        kwargs: for the configuration, and ``dtype`` and ``attn_implementation``.

    Raises:
        ModelError: no such model, or not one that predicts the next token, or it can't be built without weights.
        MissingDependencyError: a package is needed to read it.
    """
    kwargs.setdefault("trust_remote_code", False)
    with explained(what, name, "configuration"), _quiet():
        config = _configuration(place, kwargs)
        loader = _class_for(what, name, config)
        chosen = {key: kwargs[key] for key in ("dtype", "attn_implementation") if kwargs.get(key) is not None}
        with torch.device("meta"):
            if hasattr(loader, "from_config"):  # an automatic class
                return loader.from_config(config, trust_remote_code=kwargs["trust_remote_code"], **chosen)
            return loader._from_config(config, **chosen)


def refuse_adapter(what: str, name: str, place: str | Path) -> None:
    """Refuse a directory with an adapter, also beside a model's weights: transformers would load it without a message.

    Raises:
        ModelError: there is an adapter in the directory.
    """
    path = Path(place)
    if not (path / "adapter_config.json").is_file():
        return
    beside = " beside its model" if (path / "config.json").is_file() else ""
    raise ModelError(
        f"{what} {name} is a directory with an adapter{beside} (adapter_config.json): merge the two with PEFT's "
        "merge_and_unload and give the result, or the model without the adapter"
    )


def _configuration(place: str | Path, kwargs: dict[str, Any]) -> Any:
    """The configuration of the checkpoint at ``place``."""
    from transformers import AutoConfig

    names = ("trust_remote_code", "local_files_only", "revision", "gguf_file", "cache_dir", "token")
    return AutoConfig.from_pretrained(
        str(place), **{name: kwargs[name] for name in names if kwargs.get(name) is not None}
    )


def _class_for(what: str, name: str, config: Any) -> Any:
    """The automatic class, or transformers' own, that loads this checkpoint.

    Raises:
        ModelError: none of them does, or the model is an encoder-decoder.
    """
    import transformers

    if config.is_encoder_decoder or getattr(config.get_text_config(), "is_encoder_decoder", False):
        raise ModelError(
            f"{what} {name} is an encoder-decoder model ({config.model_type}); one that predicts the next token from "
            "the text alone is needed"
        )
    remote = getattr(config, "auto_map", None) or {}
    saved_as = list(getattr(config, "architectures", None) or ())
    knowing = [each for each in _AUTOMATIC if each in remote or _local_class(each, config)]
    if knowing:
        chosen = next((each for each in knowing if _local_class(each, config) in saved_as), knowing[0])
        return getattr(transformers, chosen)
    for own in (getattr(transformers, each, None) for each in saved_as):
        if own is not None and issubclass(own, transformers.GenerationMixin) and own.config_class is type(config):
            return own
    raise ModelError(
        f"{what} {name} is of a kind ({config.model_type}) that does not predict the next token, or that this "
        "transformers doesn't know"
    )


def _local_class(automatic: str, config: Any) -> str:
    """The name of transformers' own class behind an automatic one for this configuration; empty if there is none."""
    import transformers

    mapping = getattr(transformers, automatic)._model_mapping
    return str(mapping[type(config)].__name__) if type(config) in mapping else ""


def _conversion_error(what: str, name: str, told: list[str]) -> ModelError | None:
    """The error for weights that transformers couldn't convert, which it names only in its log; None without any."""
    lines = [line for text in told for line in text.splitlines() if "CONVERSION" in line and "|" in line]
    if not lines:
        return None
    names = ", ".join(line.split("|")[0].strip() for line in lines[:3])
    return ModelError(
        f"{what} {name}: {len(lines)} weights can't be made from what the files hold ({names}): a part of them is "
        "missing or of another shape than config.json says"
    )


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Hide transformers' progress bars and its report of the load; yields a list that gets the logged texts."""
    from transformers.utils import logging as own

    told: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        told.append(text)
        return "LOAD REPORT" not in text

    log = logging.getLogger("transformers.modeling_utils")
    shown = own.is_progress_bar_enabled()
    own.disable_progress_bar()  # type: ignore[no-untyped-call]
    log.addFilter(keep)
    try:
        yield told
    finally:
        log.removeFilter(keep)
        if shown:
            own.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def explained(what: str, name: str, part: str) -> Iterator[None]:
    """Turn any error of transformers, while it reads a part of a model, into one line.

    Raises:
        ModelError: the part can't be loaded, or doesn't fit on the device.
        MissingDependencyError: a package is needed.
    """
    try:
        yield
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{what} {name} doesn't fit on the device: try --dtype bf16, --device-map auto, or a quantised one"
        ) from error
    except ImportError as error:
        raise MissingDependencyError(f"{what} {name}: {reason(error)}") from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{what} {name} comes with code of its own (auto_map in its files), which isn't run unasked: look it "
                "over, then give --trust-remote-code to `dump`; other commands take no such model"
            ) from error
        raise ModelError(f"{what} {name}: its {part} can't be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """An error of transformers in one line; for a KeyError, with what the key means."""
    if isinstance(error, KeyError):
        return f"config.json or another file lacks, or transformers doesn't know, {error}"
    return reason(error)
