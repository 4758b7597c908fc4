"""Engines that turn token ids into top-k targets."""

from logitcache.teacher.generate import Generation
from logitcache.teacher.identity import TeacherFiles, combined_digest, find_teacher, weights_digest
from logitcache.teacher.load import DTYPES, Dtype, choose_device, choose_dtype, load_config, load_model, load_tokenizer
from logitcache.teacher.tensor_parallel import Teacher, Team, team
from logitcache.teacher.transformers_engine import HostTopK, TransformersTeacher

__all__ = [
    "DTYPES",
    "Dtype",
    "Generation",
    "HostTopK",
    "Teacher",
    "TeacherFiles",
    "Team",
    "TransformersTeacher",
    "choose_device",
    "choose_dtype",
    "combined_digest",
    "find_teacher",
    "load_config",
    "load_model",
    "load_tokenizer",
    "team",
    "weights_digest",
]
