"""The parts of ``benchmarks.gpu``: a dump beside the bare pass, the loader, the head, and a training step."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from benchmarks import loader, loss_head, train_step
from benchmarks._device import peak_bytes, wait
from benchmarks._gpu_machines import Machine, build, build_spread
from benchmarks._teacher import DATA
from benchmarks.dump_overhead import bare_pass, engine_of, full_dump, timed
from logitcache.cache.reader import Cache, open_cache
from logitcache.dump import DumpConfig
from logitcache.dump.finalise import finalise
from logitcache.dump.plan import Plan
from logitcache.dump.run import new_plan
from logitcache.dump.settings import Job, resolve
from logitcache.utils.progress import silent

TOP_K = 64
Row = dict[str, Any]


def teacher_directory(place: Path, config: PretrainedConfig) -> Path:
    """A teacher's directory: a configuration and a tokenizer of 2,000 words from the example texts.

    The weights are random and only ever in memory; the file stands for them where a dump hashes its teacher.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(path) for path in sorted((DATA / "train").glob("*.txt"))], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(place)
    config.save_pretrained(place)
    save_file({"none": torch.zeros(1)}, place / "model.safetensors")
    return place


def job_of(machine: Machine, place: Path, device: torch.device, dtype: str) -> tuple[Job, Plan]:
    """The dump of the example texts, repeated until there are as many characters as the machine reads."""
    texts = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DATA / "train").glob("*.txt")))
    text = place / "corpus.txt"
    text.write_text((texts * (machine.characters // len(texts) + 1))[: machine.characters], encoding="utf-8")
    config = DumpConfig(
        teacher=str(teacher_directory(place / "teacher", machine.teacher)),
        data=(str(text),),
        out=place / "out",
        top_k=TOP_K,
        max_length=min(512, machine.batch_tokens),
        batch_tokens=machine.batch_tokens,
        min_mass=0.0,
        dtype=dtype,  # type: ignore[arg-type]
        device=str(device),
    )
    job = resolve(config)
    return job, new_plan(job, place / "plan", silent)


def dump_rows(
    machine: Machine, place: Path, devices: list[torch.device], dtype: str, repeats: int
) -> tuple[Row, Cache]:
    """The dump against the bare forward pass with top-k, in turns; and the last dump as a cache."""
    job, plan = job_of(machine, place, devices[0], dtype)
    number = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    config = machine.teacher
    model = build(config, devices[0], number) if machine.devices == 1 else build_spread(config, devices, number)
    engine = engine_of(model.requires_grad_(False), job)
    ratios, seconds = [], []
    memory = {"bare": peak_bytes(lambda: bare_pass(model, plan, job))}
    memory["dump"] = peak_bytes(lambda: full_dump(engine, plan, job, place / "warm"))
    for repeat in range(repeats):
        out = job.config.out if repeat == repeats - 1 else place / f"out-{repeat}"
        calls: dict[str, Callable[[], None]] = {
            "bare": lambda: bare_pass(model, plan, job),
            "dump": lambda out=out: full_dump(engine, plan, job, out),  # type: ignore[misc]
        }
        took = {name: timed(calls[name]).wall for name in sorted(calls, reverse=bool(repeat % 2))}
        ratios.append(took["dump"] / took["bare"])
        seconds.append(took["dump"])
    finalise(job, plan)
    row = {
        "parameters": sum(value.numel() for value in model.parameters()),
        "devices": machine.devices,
        "dtype": dtype,
        "tokens": plan.tokens,
        "dump_tokens_per_second": plan.tokens / statistics.median(seconds),
        "time_ratio": statistics.median(ratios),
        "time_ratios": ratios,
        "peak_bytes": memory,
    }
    return row, open_cache(job.config.out)


def loader_rows(cache: Cache) -> dict[str, Row]:
    """How fast the cache streams to batches on the host."""
    loader.streamed(cache)  # warm
    return {
        "stream": loader.per_core(lambda: loader.streamed(cache)),
        "stream packed": loader.per_core(lambda: loader.streamed(cache, pack_tokens=2_048)),
    }


def head_rows(machine: Machine, device: torch.device, rounds: int) -> list[Row]:
    """Output layer and loss against linear + cross-entropy, hidden states and weight in bf16."""
    config, tokens = machine.student, machine.step_tokens
    setup = loss_head.Setup(config.hidden_size, config.vocab_size, tokens, TOP_K, device, torch.bfloat16)
    ways = [loss_head.BASELINE, "bild", "bild=1.0,residual_kl=0.1"]
    times = loss_head.seconds(setup, ways, rounds)
    before = peak_bytes(lambda: None)
    rows = []
    for way in ways:
        setup.hidden.grad = setup.weight.grad = None
        peak = peak_bytes(lambda way=way: setup.run(way))  # type: ignore[misc]
        rows.append({
            "loss": way, "width": config.hidden_size, "vocabulary": config.vocab_size, "tokens": tokens,
            "seconds": min(times[way]), "time_ratio": min(times[way]) / min(times[loss_head.BASELINE]),
            "extra_bytes": peak - before,
        })  # fmt: skip
    return rows


def step_rows(machine: Machine, place: Path, device: torch.device, rounds: int) -> list[Row]:
    """A whole step with AdamW, float32 weights, bf16 autocast: fine-tuning, online distillation, from a cache."""
    teacher = build(machine.online, device, torch.bfloat16).requires_grad_(False)
    student = build(machine.student, device, torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    input_ids_1L = train_step.tokens_from(tokenizer, machine.step_tokens).to(device)

    def autocast(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast(device.type, torch.bfloat16):
                return loss()

        return run

    ways = {way: autocast(loss) for way, loss in train_step.ways(teacher, student, input_ids_1L, TOP_K).items()}
    times = train_step.measure(ways, student, rounds)
    held = sum(value.nbytes for value in teacher.parameters())
    ours, rows = min(times[train_step.OURS]), []
    for way, loss in ways.items():
        peak = peak_bytes(lambda loss=loss: loss().backward())  # type: ignore[misc]
        student.zero_grad(set_to_none=True)
        rows.append({
            "way": way, "tokens": machine.step_tokens, "seconds": min(times[way]), "ours_takes": ours / min(times[way]),
            # The teacher is in memory for all of them here, but only one needs it. AdamW's numbers are not in the peak.
            "peak_bytes_without_optimizer": peak if way == "online" else peak - held,
        })  # fmt: skip
    return rows


def release() -> None:
    """Give memory back before the next part."""
    gc.collect()
    wait()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
