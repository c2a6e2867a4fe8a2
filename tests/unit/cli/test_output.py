from __future__ import annotations

import json

import pytest

from llama_scale.cli.output import emit_json


def test_json_is_what_strict_parsers_read(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"loss": float("nan"), "rows": [{"x": float("inf")}, (1.5, None, True, "NaN")]})

    def refuse(text: str) -> None:
        raise AssertionError(text)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"loss": None, "rows": [{"x": None}, [1.5, None, True, "NaN"]]}
