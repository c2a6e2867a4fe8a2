"""Task ``summarization``: a document and its summary, by a prompt; ROUGE-1, -2 and -L."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from llama_scale.extensions.api import TaskDescriptor
from llama_scale.extensions.examples import Column
from llama_scale.tasks.prompted import FieldName, PromptedOptions, template_of
from llama_scale.tasks.samples import SUMMARIES


class SummarizationOptions(PromptedOptions):
    """Options of ``kind: summarization``."""

    source: ClassVar[str] = "document"

    document_field: FieldName = Field("document", description="Field with the text.")
    summary_field: FieldName = Field(
        "summary", description="Field with the summary, or a list of them: the first trains, the best one scores."
    )
    template: Annotated[str, template_of({"document"}, needs="document")] = Field(
        "Summarize the text in one line.\n\n{document}\n\nSummary:",
        description="The prompt; {document} is replaced.",
    )
    stemmer: bool = Field(True, description="Whether ROUGE compares words without their English endings.")

    def columns(self) -> tuple[Column, ...]:
        """See ``FileTaskOptions.columns``."""
        return (
            Column(name=self.document_field, option="document_field"),
            Column(name=self.summary_field, form="texts", option="summary_field"),
        )


DESCRIPTOR = TaskDescriptor(
    name="summarization",
    options=SummarizationOptions,
    implementation="llama_scale.tasks.summarization_module:Summarization",
    summary="Summaries by a prompt; ROUGE-1, ROUGE-2, ROUGE-L.",
    files=SummarizationOptions.files,
    sample=SUMMARIES,
)
