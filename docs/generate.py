"""Write docs/reference/cli.md from the program itself, so that help and docs can't drift apart.

python docs/generate.py          # write it
python docs/generate.py --check  # exit 1 if the committed page is stale
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import typer

from logitcache.cli.main import app

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEADER = """# Command line reference

Generated from the program by `python docs/generate.py`. Each command has a guide with worked examples under
[Commands](../commands/dump.md). Exit status: 0 done, 1 an error that is explained in a line or two, 2 wrong usage.
`--debug`, anywhere on the line, shows the traceback of an error.
"""


def option_row(option: click.Parameter) -> str:
    """One table row: flags, kind, default, help."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if isinstance(option, click.Argument):
        names = f"`{option.human_readable_name}`"
    kind = option.type.name
    if isinstance(option.type, click.Choice):
        kind = " \\| ".join(str(choice) for choice in option.type.choices)
    default = option.default
    shown = "" if default is None or default is False or default == [] or callable(default) else f"`{default}`"
    if option.required:
        shown = "required"
    text = getattr(option, "help", None) or ""
    return f"| {names} | {kind} | {shown} | {' '.join(text.split())} |"


def page() -> str:
    """The whole reference as Markdown."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    parts = [HEADER]
    for name, command in sorted(root.commands.items()):
        parts.append(f"\n## logitcache {name}\n\n{' '.join((command.help or '').split())}\n")
        parts.append("| option | kind | default | what it does |\n|---|---|---|---|")
        parts.extend(option_row(option) for option in command.params if option.name != "help")
    return "\n".join(parts) + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE} is stale: run `python docs/generate.py`", file=sys.stderr)
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
