"""Fill the job templates under ``launch/templates``; a missing value is an error, every value is quoted."""

from __future__ import annotations

from typing import Any

from llama_scale.resources import data_dir


def fill(name: str, **values: Any) -> str:
    """Return the template ``launch/templates/<name>`` with its values.

    Args:
        name: Path below the templates folder.
        values: What the template names. Text passes through the ``sh`` filter (``shlex.quote``) there.

    Raises:
        jinja2.UndefinedError: The template names a value that is not given.
    """
    import shlex

    import jinja2  # lazy: only rendering needs it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(data_dir("launch") / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,  # shell text, not HTML: the sh filter quotes
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    return environment.get_template(name).render(values)
