from __future__ import annotations

from llama_scale.columns import columns


def test_sentence_is_wrapped_beside_its_row() -> None:
    text = columns([("ok", "first", "a b c"), ("FAILED", "second", "word " * 30)])

    lines = text.splitlines()
    assert lines[0] == "ok      first   a b c"
    assert max(map(len, lines)) <= 80
    assert all(line.startswith(" " * 16 + "word") for line in lines[2:])


def test_sentence_without_room_stands_below_its_row() -> None:
    text = columns([("x" * 60, "y", "word " * 20), ("x", "y", "")])

    lines = text.splitlines()
    assert lines[0] == "x" * 60 + "  y"
    assert lines[1].startswith("    word word")
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "x" + " " * 61 + "y"


def test_short_sentences_stay_in_their_column() -> None:
    assert columns([("x" * 60, "short"), ("y", "too")]) == "x" * 60 + "  short\ny" + " " * 61 + "too"
