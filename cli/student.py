"""`logitcache student`: make a student from a larger model by keeping some of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from logitcache.utils.progress import progress_bars

from .common import console, messages, print_json
from .measures import quiet_transformers


def student(
    teacher: Annotated[str, typer.Option(help="The model to cut: a directory, a GGUF file or a hub id.")],
    layers: Annotated[str, typer.Option(help="How many layers to keep, such as 10, or which, such as 0,3,7,29.")],
    out: Annotated[Path, typer.Option(help="The student's directory; must not exist yet.")],
    importance: Annotated[
        str | None,
        typer.Option(
            help="A cache: keep the layers that change the hidden state most on its text. Default: even distances."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was kept as JSON.")] = False,
) -> None:
    """Make a student from a model by keeping some of its layers. Width, embeddings and head stay the same.

    Example: logitcache student --teacher SmolLM2-135M-Instruct --layers 10 --out student
    """
    from logitcache.errors import ConfigError
    from logitcache.students.cut import make_student

    try:
        numbers = [int(part) for part in layers.split(",")]
    except ValueError:
        raise ConfigError(f"layers = {layers!r} is not allowed; give a number, or a list like 0,3,7") from None
    chosen = numbers[0] if len(numbers) == 1 else numbers
    quiet_transformers()
    with progress_bars(messages) as report:
        kept = make_student(teacher, out, layers=chosen, importance_cache=importance, report=report)
    if as_json:
        print_json({"out": str(out), "layers": list(kept)})
        return
    console.print(f"{out}: {len(kept)} layers, {', '.join(map(str, kept))} of {teacher}", highlight=False)
