"""How many bytes of a teacher's weights each device will hold, found out before any are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from logitcache.models.identity import TeacherFiles
from logitcache.models.loading import build_empty
from logitcache.models.teacher import choose_device
from logitcache.utils.device import DEVICES, Devices

#: Device maps that transformers works out by the devices' free memory. Any other is the name of one device.
_WORKED_OUT = ("auto", "balanced", "balanced_low_0", "sequential")
#: Of a single device's free memory, what transformers fills with weights before it leaves some on the CPU.
_FILLED_ALONE = 0.9


def weights_by_device(
    files: TeacherFiles,
    *,
    dtype: torch.dtype,
    device: torch.device,
    device_map: str | None = None,
    processes: int = 1,
    trust_remote_code: bool = False,
    devices: Devices = DEVICES,
) -> dict[torch.device, int]:
    """Bytes of weights on each device that :func:`logitcache.models.teacher.load_model` will use.

    Args:
        files: the teacher's. Their size is taken for that of the weights, unless a device map must be worked out.
        dtype: of the weights in memory.
        device: where the teacher runs without a device map.
        device_map: as transformers takes it.
        processes: how many share the weights.
        trust_remote_code: run code that comes with the teacher.
        devices: the machine's.

    Raises:
        ModelError: the model can't be built from its configuration.
        ConfigError: the device map names a device that can't be used.
    """
    stored_bytes = sum(path.stat().st_size for path in files.weight_files())
    if device_map is None:
        return {device: stored_bytes // processes}
    if device_map not in _WORKED_OUT:
        return {choose_device(device_map, devices): stored_bytes}
    kind = "cuda" if device.type == "cpu" else device.type
    places = [torch.device(kind, index) for index in range(devices.count(kind))]
    free = {place.index: devices.free_bytes(place) for place in places}
    known = {index: free_bytes for index, free_bytes in free.items() if free_bytes is not None}
    if not known:
        return {device: stored_bytes}
    model = build_empty(
        "teacher",
        files.name,
        files.directory,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        **files.load_kwargs(),
    )
    quantised = getattr(model.config, "quantization_config", None) is not None and files.gguf_file is None
    spread = spread_bytes(model, device_map, known, stored_bytes if quantised else None)
    return {torch.device(kind, index): held for index, held in spread.items()}


def spread_bytes(
    model: Any, device_map: str, free_bytes: Mapping[int, int], stored_bytes: int | None = None
) -> dict[int, int]:
    """What a device map of transformers puts on each device, by the device's index.

    Args:
        model: may be on the meta device.
        device_map: one that transformers works out.
        free_bytes: of each device.
        stored_bytes: of all weights, where they take another size in memory than the model's dtype says (quantised).

    Returns:
        Bytes on the devices that get some. Where a part is left on the CPU, the first device gets room for the
        largest module of it as well: it is copied there to be run.
    """
    from accelerate.utils import compute_module_sizes, get_balanced_memory, infer_auto_device_map

    sizes: dict[str, int] = compute_module_sizes(model)
    # The map is worked out in bytes of the model's dtype.
    scale = 1.0 if stored_bytes is None else sizes[""] / max(stored_bytes, 1)
    limits: dict[int | str, int] = {index: int(free * scale) for index, free in sorted(free_bytes.items())}
    first = min(free_bytes)
    if len(free_bytes) == 1 and device_map != "sequential":
        limits[first] = int(limits[first] * _FILLED_ALONE)
    limits["cpu"] = 2 * sizes[""]  # enough for all
    whole = getattr(model, "_no_split_modules", None)
    if device_map != "sequential":
        low_first = device_map == "balanced_low_0"
        limits = get_balanced_memory(model, limits, no_split_module_classes=whole, low_zero=low_first)
    placed = infer_auto_device_map(model, limits, no_split_module_classes=whole, clean_result=False)
    held: Counter[int] = Counter()
    left = [sizes[name] for name, place in placed.items() if not isinstance(place, int)]
    if left:
        held[first] += max(left)
    for name, place in placed.items():
        if isinstance(place, int):
            held[place] += sizes[name]
    return {index: round(held[index] / scale) for index in sorted(held)}
