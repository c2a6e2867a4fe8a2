"""Replace whole sections in a spec's text, and leave every other line, with its comments, as it is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

_KEY = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*):")


def replace_sections(text: str, sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text with these sections in place of its own; missing ones are added at the end.

    Works on block YAML with sections at the left margin. The caller reads the result back: a document written otherwise
    (one flow mapping, anchors that a replaced section defines) does not come out as wished.

    Args:
        text: The spec.
        sections: Section -> its new fields.
    """
    blocks = _blocks(text)
    left = dict(sections)
    out = []
    for name, body, tail in blocks:
        if name in left:
            out += [_dump(name, left.pop(name)), *tail]
        elif name not in sections:  # a second one of the same name would win over the new one
            out += [*body, *tail]
    if left and out and not out[-1].endswith("\n"):
        out.append("\n")
    return "".join(out) + "".join(_dump(name, fields) for name, fields in left.items())


def flow(value: Any) -> str:
    """Return a value as YAML in flow style, on one line; keys keep their order."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _dump(name: str, fields: Mapping[str, Any]) -> str:
    return f"{name}:\n" + "".join(f"  {field}: {flow(value)}\n" for field, value in fields.items())


def _blocks(text: str) -> list[tuple[str, list[str], list[str]]]:
    """Return (section, its lines, blank lines and comments that lead to the next one); what stands above is first."""
    blocks: list[tuple[str, list[str], list[str]]] = [("", [], [])]
    for line in text.splitlines(keepends=True):
        key = _KEY.match(line)
        if key:
            blocks.append((key[1], [line], []))
            continue
        _, body, tail = blocks[-1]
        if not line.strip() or line.startswith("#"):
            tail.append(line)
        else:
            body += [*tail, line]
            tail.clear()
    return blocks
