"""Settings of a dump's teacher: which model, which engine, and which dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from logitcache.utils.settings import Config, Flag

TEACHER = "Teacher"


class TeacherConfig(Config):
    """The settings of :class:`logitcache.DumpConfig` about the teacher."""

    teacher: Annotated[
        str,
        Field(min_length=1, description="The teacher: a model directory, a hub id, or a .gguf file."),
        Flag(TEACHER, resume="content"),
    ]
    engine: Annotated[
        str,
        Field(min_length=1, description="Engine that runs the teacher: transformers, or one that a package adds."),
        Flag(TEACHER),
    ] = "transformers"
    revision: Annotated[
        str | None,
        Field(description="Revision of a teacher from a hub."),
        Flag(TEACHER, default="the hub's newest", resume="content"),
    ] = None
    dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(description="Dtype of the teacher; auto is the checkpoint's on a GPU, and fp32 on a CPU."),
        Flag(TEACHER),
    ] = "auto"
    head_dtype: Annotated[
        Literal["fp32", "model"],
        Field(
            description="Dtype of the teacher's logits: fp32 computes the output layer's product in float32, also if "
            "the weights are in half precision; model leaves it to the model."
        ),
        Flag(TEACHER),
    ] = "fp32"
    device: Annotated[
        str,
        Field(
            description="Device of the teacher: auto, cpu, cuda (under torchrun each process's own GPU), or a certain "
            "GPU, such as cuda:1."
        ),
        Flag(TEACHER, resume="content"),
    ] = "auto"
    device_map: Annotated[
        str | None,
        Field(description="How transformers divides the teacher over several devices, such as auto."),
        Flag(TEACHER, default="one device"),
    ] = None
    tensor_parallel: Annotated[
        bool,
        Field(description="Split each layer of the teacher over all processes that torchrun starts, as one worker."),
        Flag(TEACHER, resume="content"),
    ] = False
    attention: Annotated[
        str | None,
        Field(description="Attention implementation of transformers, such as sdpa or eager."),
        Flag(TEACHER, default="transformers' choice"),
    ] = None
    trust_remote_code: Annotated[
        bool,
        Field(description="Run Python code that comes with the teacher; use it only if you trust that code."),
        Flag(TEACHER, resume="free"),
    ] = False
    batch_tokens: Annotated[
        int | None,
        Field(ge=1, description="Tokens of one forward pass, padding included."),
        Flag(TEACHER, default="2048 on a CPU, what fits on a GPU"),
    ] = None

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher_to_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _check_devices(self) -> TeacherConfig:
        if self.tensor_parallel and self.device_map is not None:
            raise ValueError("device_map and tensor_parallel are two ways to use several devices: choose one")
        return self
