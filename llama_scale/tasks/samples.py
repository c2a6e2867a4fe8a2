"""A few rows of every built-in task, for `plugins check`; all the project's own words."""

from __future__ import annotations

from typing import Any

_FACTS = (
    ("The harbour of Alvik is open from April to October.", "When is the harbour of Alvik open?", "April to October"),
    ("Alvik has a market of forty stalls.", "How many stalls has the market of Alvik?", "forty"),
    ("The ferry to Alvik leaves twice a day.", "How often does the ferry to Alvik leave?", "twice a day"),
    ("The church of Alvik is built of red stone.", "What is the church of Alvik built of?", "red stone"),
)

SUMMARIES: tuple[dict[str, Any], ...] = tuple(
    {"document": f"{text} It has been so for many years.", "summary": text.removesuffix(".")} for text, _, _ in _FACTS
)
TRANSLATIONS: tuple[dict[str, Any], ...] = (
    {"source": "The harbour is open.", "target": "Der Hafen ist offen."},
    {"source": "The ferry leaves twice a day.", "target": "Die Fähre fährt zweimal am Tag."},
    {"source": "The church is built of red stone.", "target": "Die Kirche ist aus rotem Stein gebaut."},
    {"source": "The market has forty stalls.", "target": "Der Markt hat vierzig Stände."},
)
ANSWERS: tuple[dict[str, Any], ...] = tuple(
    {"context": text, "question": question, "answer": answer, "answer_start": text.index(answer)}
    for text, question, answer in _FACTS
)
QUERIES: tuple[dict[str, Any], ...] = tuple({"query": question, "positive": text} for text, question, _ in _FACTS)
CONVERSATIONS: tuple[dict[str, Any], ...] = tuple(
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for _, question, answer in _FACTS
)
