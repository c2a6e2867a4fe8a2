"""Messages of the task ``sft`` as chat templates take them, and which of them the loss counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llama_scale.errors import DataError

if TYPE_CHECKING:
    from llama_scale.tasks.sft import SftOptions

_FUNCTION_CALL = "function_call"
_AS_WRITTEN = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")
"""Roles that templates know."""
_SHAREGPT = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    _FUNCTION_CALL: _FUNCTION_CALL,
}
"""Who speaks in sharegpt rows, as LLaMA-Factory and axolotl read them."""


_WEIGHTS = ("weight", "train", "training", "trainable", "loss", "loss_weight")
"""Keys of messages that say in other tools whether a turn is trained."""


class MessageReader:
    """Gather the messages of one row.

    Args:
        where: The row, for messages.
        options: The task's options.
    """

    def __init__(self, where: str, options: SftOptions) -> None:
        self.messages: list[dict[str, Any]] = []
        self._where = where
        self._options = options
        self._left_out: set[int] = set()
        """Numbers of the assistant's messages of weight 0."""

    def add(self, role: str, content: str) -> None:
        """Add a message that is text alone."""
        self._append({"role": role, "content": content}, weight=None)

    def add_list(self, value: Any, *, name: str) -> None:
        """Add a list of messages as it stands in a field.

        Raises:
            DataError: It is no list of messages.
        """
        if not isinstance(value, list) or not value:
            raise self._fault(f"field {name!r} is {_shown(value)}, and it must be a list of messages, not empty")
        role_key, content_key = self._keys(value[0])
        for item in value:
            if not isinstance(item, dict):
                raise self._message_fault(f"is {_shown(item)}, and a message must be an object")
            given = {k: v for k, v in item.items() if v is not None and k not in self._options.ignore_fields}
            weight = given.pop(self._options.weight_field, None)
            self._append(self._message(given, role_key, content_key), weight=weight)

    def add_system(self, text: Any, *, name: str) -> None:
        """Put the row's system message in front, or the option's where the row has none.

        Raises:
            DataError: The row has two of them.
        """
        if text is not None and not isinstance(text, str):
            raise self._fault(f"field {name!r} is {_shown(text)}, and it must be a text")
        has_one = self.messages[0]["role"] in ("system", "developer")
        if text and text.strip():
            if has_one:
                raise self._fault(
                    f"field {name!r} and the first message are both a system message; remove one, or name {name} in "
                    "the option ignore_fields"
                )
        elif has_one or self._options.system is None:
            return
        else:
            text = self._options.system
        self.messages.insert(0, {"role": "system", "content": text})
        self._left_out = {number + 1 for number in self._left_out}

    def trained(self) -> list[int]:
        """Return the numbers of the messages that the loss counts.

        Raises:
            DataError: There are none.
        """
        of_assistant = [n for n, message in enumerate(self.messages) if message["role"] == "assistant"]
        if not of_assistant:
            roles = ", ".join(message["role"] for message in self.messages)
            raise self._fault(
                f"the conversation has no message of role 'assistant' (it has {roles}), so there is nothing to learn; "
                "remove the row, or map its roles with the option roles"
            )
        wanted = of_assistant[-1:] if self._options.train_on == "last" else of_assistant
        found = [number for number in wanted if number not in self._left_out]
        if not found:
            which = "the last answer has" if self._options.train_on == "last" else "all answers have"
            raise self._fault(f"{which} weight 0, so there is nothing to learn; remove the row")
        for number in found:
            message = self.messages[number]
            if not any(_says_something(value) for key, value in message.items() if key not in ("role", "name")):
                raise self._fault(
                    f"message {number + 1} (assistant) is empty; remove it, or leave it out of the loss with weight: 0"
                )
        return found

    def _keys(self, first: Any) -> tuple[str, str]:
        """Return the keys of role and content, by the options or by the first message."""
        form, role_key, content_key = self._options.form, self._options.role_field, self._options.content_field
        if role_key is None:
            styles = {"messages": ("role",), "sharegpt": ("from",)}.get(form, ("role", "from"))
            there = [key for key in styles if isinstance(first, dict) and key in first]
            if len(there) != 1:
                has = ", ".join(map(repr, first)) if isinstance(first, dict) else _shown(first)
                raise self._message_fault(
                    f"must say who speaks under {' or '.join(map(repr, styles))}, and it has {has}; name the key in "
                    "the option role_field, and the key of the text in content_field"
                )
            role_key = there[0]
        return role_key, content_key or ("value" if role_key == "from" else "content")

    def _message(self, given: dict[str, Any], role_key: str, content_key: str) -> dict[str, Any]:
        role = self._role(given.pop(role_key, None), role_key)
        content = given.pop(content_key, None)
        if twice := {"role", "content"} & given.keys():
            raise self._message_fault(
                f"has {min(twice)!r} besides {role_key!r} and {content_key!r}; name it in the option ignore_fields"
            )
        if weights := [name for name in _WEIGHTS if name in given]:
            raise self._message_fault(
                f"has {weights[0]!r}: {_shown(given[weights[0]])}, and weights are read from "
                f"{self._options.weight_field!r}; set weight_field: {weights[0]}, or name it in the option "
                "ignore_fields"
            )
        if role == _FUNCTION_CALL:
            return {"role": "assistant", "content": "", "tool_calls": self._function_calls(content), **given}
        message: dict[str, Any] = {"role": role}
        if content is not None:
            message["content"] = self._content(content, content_key)
        elif not any(map(_says_something, given.values())):
            raise self._message_fault(f"({role}) has no {content_key!r}, and nothing in its place; remove the row")
        if (calls := given.get("tool_calls")) is not None:
            self._check_calls(calls, role)
        check_plain(given, where=f"{self._where}: message {len(self.messages) + 1}")
        return {**message, **given}

    def _role(self, value: Any, key: str) -> str:
        known: Mapping[str, str] = {role: role for role in _AS_WRITTEN} if key == "role" else _SHAREGPT
        known = {**known, **self._options.roles}
        if not isinstance(value, str) or value not in known:
            name = value if isinstance(value, str) else "bot"
            raise self._message_fault(
                f"has {key!r}: {_shown(value)}, which is no known role ({', '.join(known)}); say what it stands for in "
                f"the option roles, e.g. roles: {{{name}: {_SHAREGPT.get(name, 'assistant')}}}"
            )
        return known[value]

    def _content(self, value: Any, key: str) -> Any:
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            for part in value:
                kind = part.get("type") if isinstance(part, dict) else part
                if kind != "text" or not isinstance(part.get("text"), str):
                    raise self._message_fault(
                        f"has a part of type {_shown(kind)} in {key!r}; only parts "
                        '{"type": "text", "text": ...} can be read: models here read text'
                    )
            return value
        raise self._message_fault(f"has {key!r}: {_shown(value)}, and it must be a text or a list of text parts")

    def _check_calls(self, calls: Any, role: str) -> None:
        good = isinstance(calls, list) and all(
            isinstance(call, dict) and isinstance((call.get("function") or call).get("name"), str) for call in calls
        )
        if not good or (calls and role != "assistant"):
            raise self._message_fault(
                f"({role}) has 'tool_calls': {_shown(calls)}; it must be a list of "
                '{"type": "function", "function": {"name": ..., "arguments": {...}}}, in messages of the assistant'
            )

    def _function_calls(self, text: Any) -> list[dict[str, Any]]:
        """Return the calls of a turn ``function_call``: the JSON of ``{"name", "arguments"}``, or of a list of them."""
        try:
            found = json.loads(text)
        except (TypeError, ValueError):
            found = None
        calls = found if isinstance(found, list) else [found]
        if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
            raise self._message_fault(
                f"({_FUNCTION_CALL}) is {_shown(text)}, and it must be the JSON of "
                '{"name": ..., "arguments": {...}}, or of a list of them'
            )
        if odd := {key for call in calls for key in call} - {"name", "arguments"}:
            raise self._message_fault(f"({_FUNCTION_CALL}) has the key {min(odd)!r}; only name and arguments are read")
        return [{"type": "function", "function": _with_object(call)} for call in calls]

    def _append(self, message: dict[str, Any], *, weight: Any) -> None:
        role, name = message["role"], self._options.weight_field
        if weight is not None and weight not in (0, 1):
            raise self._message_fault(f"has {name!r}: {_shown(weight)}, and a message counts (1) or does not (0)")
        if weight and role != "assistant":
            raise self._message_fault(
                f"({role}) has {name!r}: {_shown(weight)}; only the assistant's messages are trained"
            )
        if weight == 0 and role == "assistant":
            self._left_out.add(len(self.messages))
        self.messages.append(message)

    def _fault(self, text: str) -> DataError:
        return DataError(f"{self._where}: {text}")

    def _message_fault(self, text: str) -> DataError:
        return self._fault(f"message {len(self.messages) + 1} {text}")


def read_tools(value: Any, *, where: str, name: str) -> list[Any] | None:
    """Return a row's tools, which may be written as JSON in a text.

    Raises:
        DataError: They are no list of JSON schemas.
    """
    tools = value
    if isinstance(value, str) and value.strip():
        try:
            tools = json.loads(value)
        except ValueError as error:
            raise DataError(f"{where}: field {name!r} is a text that is no JSON: {error}") from error
    elif isinstance(value, str):
        return None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{where}: field {name!r} is {_shown(value)}, and it must be a list of JSON schemas of tools")
    check_plain(tools, where=f"{where}: field {name!r}")
    return tools


def check_plain(value: Any, *, where: str) -> None:
    """Check that a value is one of JSON: Parquet files may hold dates, bytes and the like.

    Raises:
        DataError: It is not.
    """
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} holds what JSON has no form for ({error}); write it as text") from error


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments as an object, which many sharegpt rows write as JSON in the JSON."""
    try:
        arguments = json.loads(call["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return {**call, "arguments": arguments} if isinstance(arguments, dict) else call


def _says_something(value: Any) -> bool:
    return value is not None and value not in ("", [], {}) and not (isinstance(value, str) and not value.strip())


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "..."
