"""Smaller numbers with the properties of the large ones: what divides what, what is uneven, what is a proper part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_VOCABULARY = 400
"""Tokens of a shrunk vocabulary, but for its padding, where no tokenizer needs more."""


def degree(size: int) -> int:
    """Return a parallel degree of the simulation: 1 stays 1, more becomes 2. So at most 2 x 2 x 2 processes are needed.

    >>> [degree(size) for size in (1, 2, 3, 64)]
    [1, 2, 2, 2]
    """
    return min(size, 2)


def few(count: int) -> int:
    """Return a count of at most 3 with the parity of a larger one.

    >>> [few(count) for count in (1, 2, 3, 8, 9)]
    [1, 2, 3, 2, 3]
    """
    return count if count <= 3 else 3 if count % 2 else 2


def widths(model: Mapping[str, Any], *, tensor: int, width: int) -> dict[str, int]:
    """Return the widths of a small model that tensor parallel 2 divides if the spec's degree is above 1.

    Kept are: key/value heads a rank (up to 3, then their parity), grouped queries, whether the heads make up the hidden
    size, and whether they divide it, on which exports depend.

    Args:
        model: The spec's model, resolved.
        tensor: The spec's tensor parallel degree.
        width: Most that a head may be wide.
    """
    parts = degree(tensor)
    kv_heads = parts * few(model["num_kv_heads"] // tensor)
    heads = kv_heads * few(model["num_heads"] // model["num_kv_heads"])
    head_dim = min(model["head_dim"], width)
    hidden = heads * head_dim
    if model["hidden_size"] != model["num_heads"] * model["head_dim"]:
        hidden += heads if model["hidden_size"] % model["num_heads"] == 0 else heads - 1 or 2
    ffn = parts * min(model["ffn_hidden_size"] // tensor, 3 * width)
    return {
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
    }


def vocabulary(size: int, *, pad: int, tensor: int, least: int) -> tuple[int, int]:
    """Return a vocabulary and its padding, divisible or not by what pads it as the spec's are.

    Args:
        size: The spec's vocabulary.
        pad: The spec's ``vocab_pad_multiple``.
        tensor: The spec's tensor parallel degree.
        least: Tokens that the simulation's tokenizer has; 0: there is none.
    """
    divisible = size % (pad * tensor) == 0
    pad = min(pad, 128)
    unit = pad * degree(tensor)
    wanted = max(min(size, MOST_VOCABULARY), least)
    for found in range(wanted, wanted + unit + 1):
        if (found % unit == 0) == divisible:
            return found, pad
    return wanted, pad  # unit 1 divides everything


def stages(layers: int, *, chunks: int, small: int, uneven: Sequence[int] | None) -> tuple[int, list[int] | None]:
    """Return the number of layers and, where they are uneven, those of each model chunk.

    Args:
        layers: The spec's layers.
        chunks: The spec's model chunks: pipeline x virtual stages.
        small: Chunks of the simulation.
        uneven: The spec's ``stage_layers``.
    """
    if uneven is None:
        each = layers // chunks
        return (min(layers, 4) if small == 1 else small * min(each, 2)), None
    if small == 1:
        return min(layers, 4), [min(layers, 4)]
    picked = [uneven[index * (chunks - 1) // (small - 1)] for index in range(small)]
    if len(set(picked)) == 1 and len(set(uneven)) > 1:
        picked[0] = next(size for size in uneven if size != picked[0])
    low, high = min(picked), max(picked)
    sizes = [1 if size == low < high else min(size, 3 if size == high and low < high else 2) for size in picked]
    return sum(sizes), sizes


def layer_choice(choice: Any, *, layers: int, small: int) -> Any:
    """Return an adapter's option ``layers`` for a model with fewer layers; a proper part stays one.

    Args:
        choice: ``all``, ``{last: k}`` or a list of layer numbers.
        layers: The spec's layers.
        small: Layers of the simulation.
    """
    most = max(1, small - 1)
    if isinstance(choice, Mapping) and isinstance(choice.get("last"), int):
        last = choice["last"]
        return {"last": small if last >= layers else min(most, max(1, -(-last * small // layers)))}
    if isinstance(choice, (list, tuple)):
        if len(choice) >= layers:
            return list(range(small))
        found = sorted({number * small // layers for number in choice})
        return found if len(found) <= most else found[-most:]
    return choice


def rank(size: int) -> int:
    """Return a small rank (or width) of an adapter; larger ones stay larger.

    >>> [rank(size) for size in (1, 4, 6, 8, 16, 64)]
    [1, 4, 4, 6, 8, 12]
    """
    return size if size <= 4 else max(4, 2 * size.bit_length() - 2)
