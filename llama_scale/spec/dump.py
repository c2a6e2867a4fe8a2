"""Plain data -> YAML 1.2 text that ``compose`` reads back to equal data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from llama_scale.spec.scalars import parse_scalar


class _Dumper(yaml.SafeDumper):
    """PyYAML quotes what YAML 1.1 would misread; this one also quotes what only YAML 1.2 would."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out each time: a resolved spec has no anchors."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    try:
        plain = isinstance(parse_scalar(value), str)
    except ValueError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return block-style YAML with the keys in their given order; inner lists and mappings of scalars in flow style."""
    text: str = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )
    return text
