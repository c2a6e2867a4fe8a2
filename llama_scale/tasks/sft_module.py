"""Implementation of the task ``sft``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llama_scale.data.chat_turns import RenderedChat
from llama_scale.errors import DataError
from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Feature, Model, Outcome, Task, TaskContext
from llama_scale.tasks.sft import SftOptions
from llama_scale.tasks.sft_rows import Conversation
from llama_scale.tasks.text_scores import exact_match, rouge


class Sft(Task):
    """Conversations; the loss counts what the assistant says, the end of its turns included."""

    options: SftOptions

    def __init__(self, options: Any, context: TaskContext) -> None:
        super().__init__(options, context)
        self._counts: Counter[str] = Counter()

    def encode(self, example: Example) -> Sequence[Feature]:
        """See ``Task.encode``."""
        conversation = self.options.conversation(example)
        rendered = self._rendered(example, conversation)
        ids, offsets = self.context.tokenizer.encode_with_offsets(rendered.text)
        starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        weights = np.zeros(len(ids), np.float32)
        for start, end in rendered.spans:
            weights[(ends > start) & (starts < end)] = 1.0
        weights[:1] = 0.0  # nothing predicts the first token
        if not weights.any():
            raise DataError(
                f"{example.where}: no token is trained: the chat template marks or writes nothing of the answers; "
                "check its {% generation %} blocks"
            )
        self._count(conversation, rendered.text)
        written = np.array([bool(rendered.text[start:end].strip()) for start, end in offsets])
        self._count_ends(ids, written, weights > 0)
        room = self.context.seq_length
        if len(ids) > room:
            if self.options.overlong == "error":
                raise DataError(
                    f"{example.where}: the conversation has {len(ids)} tokens, more than data.seq_length={room}; use a "
                    "longer seq_length, or overlong: drop or truncate_right"
                )
            if self.options.overlong == "drop":
                return []
        tokens, weights, cut = np.array(ids[:room]), weights[:room], max(0, len(ids) - room)
        return [Feature(tokens=tokens, weights=weights, cut=cut)] if weights.any() else []

    def notes(self) -> Sequence[str]:
        """See ``Task.notes``."""
        counts, found = self._counts, []
        if counts["endless"]:
            found.append(
                f"{counts['endless']:,} of {counts['turns']:,} trained answers end without a special token, so that "
                "the model does not learn where to stop: the chat template writes none behind an answer; add "
                "{{ eos_token }} there"
            )
        if counts["open"]:
            found.append(
                f"{counts['open']:,} conversations go on after the last answer; what follows it is not trained"
            )
        if counts["quoted"]:
            found.append(
                f"{counts['quoted']:,} tool calls have their arguments as a JSON text, which the chat template quotes "
                "once more; write arguments as an object if the calls are to be read as JSON"
            )
        return found

    def predict(self, model: Model, examples: Sequence[Example]) -> Iterator[Outcome]:
        """See ``Task.predict``: answers to all before the last trained turn of the assistant, against that turn."""
        prompts, references = [], []
        for example in examples:
            conversation = self.options.conversation(example)
            last = conversation.trained[-1]
            prompts.append(self.context.tokenizer.encode(self._prompt(example, conversation, last)))
            references.append(self._reference(example, conversation, last))
        answers = model.generate(prompts, max_new_tokens=self.options.max_new_tokens)
        for ids, reference in zip(answers, references, strict=True):
            prediction = self.context.tokenizer.decode(ids).strip()
            scores = {
                "exact_match": 100.0 * exact_match(prediction, reference),
                "rougeL": rouge(prediction, [reference], stemmer=False)["rougeL"],
            }
            yield Outcome(prediction=prediction, reference=reference, scores=scores)

    def _rendered(self, example: Example, conversation: Conversation) -> RenderedChat:
        try:
            return self.context.tokenizer.conversation(
                conversation.messages,
                turns=conversation.trained,
                tools=conversation.tools,
                options=conversation.options,
            )
        except DataError as error:
            raise DataError(f"{example.where}: {error}") from error

    def _prompt(self, example: Example, conversation: Conversation, last: int) -> str:
        try:
            return self.context.tokenizer.chat(
                conversation.messages[:last],
                add_generation_prompt=True,
                tools=conversation.tools,
                options=conversation.options,
            )
        except DataError as error:
            raise DataError(f"{example.where}: {error}") from error

    def _reference(self, example: Example, conversation: Conversation, last: int) -> str:
        """Return what the assistant says: its text, or the whole turn where there is more than that."""
        message: Mapping[str, Any] = conversation.messages[last]
        if message.keys() <= {"role", "content"} and isinstance(message["content"], str):
            return str(message["content"]).strip()
        turn = Conversation(
            messages=conversation.messages[: last + 1],
            trained=[last],
            tools=conversation.tools,
            options=conversation.options,
        )
        rendered = self._rendered(example, turn)
        said = "".join(rendered.text[start:end] for start, end in rendered.spans)
        tokenizer = self.context.tokenizer
        return tokenizer.decode(tokenizer.encode(said)).strip()

    def _stops(self, token: int) -> bool:
        """Tell whether a token can end an answer: a special token, or EOS where it is written as a plain one."""
        tokenizer = self.context.tokenizer
        try:
            return tokenizer.decode([token]) == "" or token == tokenizer.eos_id
        except DataError:  # no EOS
            return False

    def _count_ends(self, ids: Sequence[int], written: np.ndarray, trained: np.ndarray) -> None:
        """Count runs of trained tokens, and those whose last one that is more than white space does not stop.

        Args:
            ids: The tokens ``[n]``.
            written: Whether each is more than white space, ``[n]``.
            trained: Whether the loss counts it, ``[n]``.
        """
        ends = np.flatnonzero(trained & ~np.append(trained[1:], False))
        for end in ends:
            solid = np.flatnonzero((written & trained)[: end + 1])
            self._counts["turns"] += 1
            self._counts["endless"] += not (len(solid) and self._stops(ids[int(solid[-1])]))

    def _count(self, conversation: Conversation, text: str) -> None:
        """Count what ``notes`` tells."""
        self._counts["open"] += conversation.messages[-1]["role"] != "assistant"
        for message in conversation.messages:
            for call in message.get("tool_calls") or ():
                arguments = (call.get("function") or call).get("arguments")
                quoted = isinstance(arguments, str) and json.dumps(arguments, ensure_ascii=False) in text
                self._counts["quoted"] += quoted
