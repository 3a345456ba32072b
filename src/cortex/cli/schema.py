"""`cortex schema`: the JSON Schema of cortex.yaml."""

from __future__ import annotations

from cortex.cli.boundary import DONE
from cortex.cli.command import Command, print_json
from cortex.cli.terminal import Terminal


def schema(terminal: Terminal) -> int:
    from cortex.spec.schema import json_schema

    print_json(terminal, json_schema())
    return DONE


COMMAND = Command(
    "schema",
    schema,
    summary="Print the JSON Schema of cortex.yaml, for editors.",
    details="""
    With it, editors complete and check a cortex.yaml while it is written. For VS Code and its YAML extension, the
    first line of cortex.yaml is:

    # yaml-language-server: $schema=cortex.schema.json
    """,
    examples=(("cortex schema > cortex.schema.json", "a file for the editor"),),
    needs_settings=False,
)
