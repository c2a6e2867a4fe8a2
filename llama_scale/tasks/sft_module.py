"""Implementation of the task ``sft``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llama_scale.errors import DataError
from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Feature, Model, Outcome, Task
from llama_scale.tasks.sft import SftOptions
from llama_scale.tasks.text_scores import exact_match, rouge


class Sft(Task):
    """Conversations; the loss counts what the assistant says, the end of its turns included."""

    options: SftOptions

    def encode(self, example: Example) -> Sequence[Feature]:
        """See ``Task.encode``."""
        text, spans = self._text_and_spans(example)
        ids, offsets = self.context.tokenizer.encode_with_offsets(text)
        starts = np.array([start for start, _ in offsets])
        weights = np.zeros(len(ids), np.float32)
        for start, end in spans:
            weights[(starts >= start) & (starts < end)] = 1.0
        weights[:1] = 0.0  # nothing predicts the first token
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

    def predict(self, model: Model, examples: Sequence[Example]) -> Iterator[Outcome]:
        """See ``Task.predict``: answers to all but the last turn of the assistant, against that turn."""
        prompts, references = [], []
        for example in examples:
            conversation = self.options.conversation(example)
            last = max(i for i, message in enumerate(conversation) if message["role"] == "assistant")
            text = self.context.tokenizer.chat(conversation[:last], add_generation_prompt=True)
            prompts.append(self.context.tokenizer.encode(text))
            references.append(conversation[last]["content"].strip())
        answers = model.generate(prompts, max_new_tokens=self.options.max_new_tokens)
        for ids, reference in zip(answers, references, strict=True):
            prediction = self.context.tokenizer.decode(ids).strip()
            scores = {
                "exact_match": 100.0 * exact_match(prediction, reference),
                "rougeL": rouge(prediction, [reference], stemmer=False)["rougeL"],
            }
            yield Outcome(prediction=prediction, reference=reference, scores=scores)

    def _text_and_spans(self, example: Example) -> tuple[str, list[tuple[int, int]]]:
        """Return the conversation's text and the characters of it that the assistant says.

        Raises:
            DataError: The template writes earlier turns otherwise when later ones follow.
        """
        messages = self.options.conversation(example)
        try:
            whole = self.context.tokenizer.chat(messages, add_generation_prompt=False)
            spans = []
            for index, message in enumerate(messages):
                if message["role"] != "assistant":
                    continue
                head = self.context.tokenizer.chat(messages[:index], add_generation_prompt=True)
                turn = self.context.tokenizer.chat(messages[: index + 1], add_generation_prompt=False)
                if not (turn.startswith(head) and whole.startswith(turn)):
                    raise DataError(
                        f"the chat template writes message {index + 1} otherwise when others follow or precede it, so "
                        "that the assistant's tokens cannot be told; use conversations of one turn"
                    )
                spans.append((len(head), len(turn.rstrip())))
        except DataError as error:
            raise DataError(f"{example.where}: {error}") from error
        return whole, spans
