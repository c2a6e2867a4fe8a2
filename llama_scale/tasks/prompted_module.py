"""Examples that are a prompt and an answer: one token sequence each, the loss on the answer alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llama_scale.errors import DataError
from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Feature, Model, Outcome, Task, TaskContext
from llama_scale.tasks.prompted import PromptedOptions


class PromptedTask(Task):
    """Base of the tasks that continue a prompt; subclasses say what goes into the template and what is right."""

    options: PromptedOptions
    template: str

    def __init__(self, options: Any, context: TaskContext) -> None:
        super().__init__(options, context)
        self.template = options.template

    def values(self, example: Example) -> dict[str, str]:
        """Return what replaces the template's placeholders."""
        raise NotImplementedError

    def template_of(self, values: Mapping[str, str]) -> str:
        """Return the template that these values go into."""
        del values
        return self.template

    def references(self, example: Example) -> list[str]:
        """Return the answers that are right; the first one trains."""
        raise NotImplementedError

    def score(self, prediction: str, references: Sequence[str]) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        """Return an example's scores and the parts of corpus metrics."""
        raise NotImplementedError

    def encode(self, example: Example) -> Sequence[Feature]:
        """See ``Task.encode``."""
        answer = self._answer_ids(example, self.template_of(self.values(example)))
        if not self._fits(answer, example):
            return []
        prompt, cut = self.prompt_ids(example, room=self.context.seq_length - len(answer))
        if prompt is None:
            return []
        weights = np.zeros(len(prompt) + len(answer), np.float32)
        weights[len(prompt) :] = 1.0
        return [Feature(tokens=np.array(prompt + answer), weights=weights, cut=cut)]

    def prompt_ids(self, example: Example, *, room: int) -> tuple[list[int] | None, int]:
        """Return the ids of an example's prompt and how many of its tokens were left out.

        Args:
            example: The example.
            room: Ids at most; if there are more, the options' ``overlong`` says what happens.

        Returns:
            No ids where the example cannot be used.

        Raises:
            DataError: It is too long, and ``overlong`` is ``error``.
        """
        values = self.values(example)
        ids = self._prompt_ids(values)
        if len(ids) <= room:
            return ids, 0
        whole = len(ids)
        if self.options.overlong == "error":
            raise DataError(
                f"{example.where}: its prompt has {whole} tokens, and beside the answer there is room for {room} in "
                f"data.seq_length={self.context.seq_length}; use a longer seq_length, or overlong: truncate_right, "
                "truncate_left or drop"
            )
        if self.options.overlong == "drop" or self.options.source not in values:
            return None, 0
        source = values[self.options.source]
        _, offsets = self.context.tokenizer.encode_with_offsets(source)
        keep = len(offsets) - (whole - room)
        while keep > 0:
            shorter = _cut(source, offsets, keep, left=self.options.overlong == "truncate_left")
            ids = self._prompt_ids({**values, self.options.source: shorter})
            if len(ids) <= room:
                return ids, whole - len(ids)
            keep -= len(ids) - room  # a cut text may fall into other tokens
        return None, 0

    def predict(self, model: Model, examples: Sequence[Example]) -> Iterator[Outcome]:
        """See ``Task.predict``; an example whose prompt does not fit is answered with nothing."""
        limit = self.options.max_new_tokens
        room = self.context.seq_length - limit
        if room <= 0:
            raise DataError(
                f"task {self.context.name!r}: max_new_tokens={limit} leaves no room for a prompt in data.seq_length="
                f"{self.context.seq_length}; use fewer"
            )
        prompts = [self.prompt_ids(example, room=room)[0] for example in examples]
        answers = iter(model.generate([ids for ids in prompts if ids is not None], max_new_tokens=limit))
        for example, prompt in zip(examples, prompts, strict=True):
            text = "" if prompt is None else self.context.tokenizer.decode(next(answers)).strip()
            references = self.references(example)
            scores, parts = self.score(text, references)
            yield Outcome(prediction=text, reference=references, scores=scores, parts=parts)

    def _prompt_ids(self, values: Mapping[str, str]) -> list[int]:
        """Return the ids of a prompt; a rendered conversation begins with what its template writes."""
        start = [] if self.options.chat else self.context.tokenizer.start_ids
        return [*start, *self.context.tokenizer.encode(self._prompt_text(values))]

    def _prompt_text(self, values: Mapping[str, str]) -> str:
        text = self.template_of(values).format(**values)
        if not self.options.chat:
            return text
        return self.context.tokenizer.chat([{"role": "user", "content": text}], add_generation_prompt=True)

    def _answer_ids(self, example: Example, template: str) -> list[int]:
        """Return the ids of the answer and of the EOS behind it."""
        answer = self.references(example)[0].strip()
        tokenizer = self.context.tokenizer
        if self.options.chat:
            ids = tokenizer.encode_after(*self._turn(answer))
        else:
            # The template's last character decides whether a space parts prompt and answer.
            text = answer if template[-1].isspace() else f" {answer}"
            ids = tokenizer.encode_after(self._prompt_text(self.values(example)), text)
        # A chat template may put a line end behind the EOS that ends a turn.
        end = len(ids) - 1 - ids[::-1].index(tokenizer.eos_id) if tokenizer.eos_id in ids else len(ids)
        return [*ids[:end], tokenizer.eos_id]

    def _fits(self, answer: Sequence[int], example: Example) -> bool:
        """Tell whether an answer leaves room for a prompt.

        Raises:
            DataError: It does not, and the options do not say that such examples are dropped.
        """
        if len(answer) < self.context.seq_length:
            return True
        if self.options.overlong == "drop":
            return False
        raise DataError(
            f"{example.where}: the answer has {len(answer)} tokens with its EOS, and a row holds data.seq_length="
            f"{self.context.seq_length} with the prompt; answers are never cut: use a longer seq_length, or overlong: "
            "drop"
        )

    def _turn(self, answer: str) -> tuple[str, str]:
        """Return a rendered conversation up to an answer, and what the chat template makes of the answer behind it."""
        both = [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]
        try:
            found = self.context.tokenizer.conversation(both, turns=[1])
        except DataError as error:
            raise DataError(f"{error}; or use chat: false") from error
        start = found.spans[0][0] if found.spans else 0
        head = self.context.tokenizer.chat(both[:1], add_generation_prompt=True)
        if found.text[:start] != head:
            raise DataError(
                "the part of an answer that the chat template marks with {% generation %} does not begin where the "
                "prompt for it ends; let it begin there, or use chat: false"
            )
        return head, found.text[start:]


def _cut(text: str, offsets: Sequence[tuple[int, int]], keep: int, *, left: bool) -> str:
    """Return the part of a text that its first (or last) ``keep`` tokens stand for."""
    return text[offsets[-keep][0] :] if left else text[: offsets[keep - 1][1]]
