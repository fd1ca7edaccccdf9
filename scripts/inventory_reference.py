#!/usr/bin/env python3
"""Generate the roles' part of docs/inventory.md from their argument specifications and defaults.

Run ``python scripts/inventory_reference.py`` after a change of either.
"""

import re
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
ROLES = REPOSITORY / "roles"
IN_ORDER = (
    "llama_cpp",
    "rpc_server",
    "redis",
    "node_monitor",
    "pool_server",
    "router",
    "firewall",
    "harness_venv",
    "gpu_devices",
    "lab_node",
)
"""In the order of site.yml; then the roles they depend on, then the lab."""
PAGE = REPOSITORY / "docs" / "inventory.md"
_MARK = "<!-- Generated from roles/*/meta and defaults by scripts/inventory_reference.py. Do not edit. -->\n"


def markdown() -> str:
    """The whole page: the handwritten text before the mark, then a table for each role."""
    written, mark, _ = PAGE.read_text().partition(_MARK)
    names = sorted(path.name for path in ROLES.iterdir() if path.is_dir())
    ordered = [*IN_ORDER, *(name for name in names if name not in IN_ORDER)]
    return written + mark + "".join(_section(role) for role in ordered)


def specification(role: str) -> dict[str, Any]:
    """The specification of a role's main entry point: ``short_description`` and ``options``."""
    specs = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text())
    main: dict[str, Any] = specs["argument_specs"]["main"]
    return main


def defaults(role: str) -> dict[str, Any]:
    """A role's defaults as written: expressions are not evaluated."""
    values: dict[str, Any] = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
    return values


def is_expression(value: object) -> bool:
    """Whether a default is an expression that Ansible evaluates."""
    return "{{" in str(value)


def _section(role: str) -> str:
    main, values = specification(role), defaults(role)
    rows = "".join(
        f"| `{name}` | {_type(option)} | {_default(name, option, values)} | {_meaning(option)} |\n"
        for name, option in main["options"].items()
    )
    title = f"\n### {role}\n\n{_prose(main['short_description'])}.\n\n"
    return f"{title}| Variable | Type | Default | Meaning |\n|---|---|---|---|\n{rows}"


def _type(option: dict[str, Any]) -> str:
    if choices := option.get("choices"):
        return " or ".join(f"`{choice}`" for choice in choices)
    kind = option.get("type", "str")
    return f"list of {option['elements']}" if "elements" in option else str(kind)


def _default(name: str, option: dict[str, Any], values: dict[str, Any]) -> str:
    if option.get("required"):
        return "required"
    value = values.get(name)
    if is_expression(value):
        return _prose(str(option.get("default", "see its meaning")))
    if name not in values:
        return "none"
    return f"`{_literal(value)}`"


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_literal(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_literal(item)}' for key, item in value.items())}}}"
    return str(value) or '""'


def _meaning(option: dict[str, Any]) -> str:
    described = option["description"]
    return _prose(" ".join(described) if isinstance(described, list) else described)


def _prose(text: str) -> str:
    """Ansible's markup as Markdown, in one cell."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"\b[VCOE]\(([^)]*)\)", r"`\1`", text)


if __name__ == "__main__":
    PAGE.write_text(markdown())
