"""The bookkeeping of a conversion: each source element is used exactly once, each target element written once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_scale.errors import ConvertError
from llama_scale.layout.boxes import Box


def _covers_once(boxes: Iterable[Box], shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with a tiling of a tensor, or None: every element must be in exactly one box."""
    whole = Box.whole(shape)
    found = sorted(boxes, key=lambda box: box.offset)
    for number, box in enumerate(found):
        if whole.intersect(box) != box:
            return f"box {box.offset}+{box.shape} leaves the tensor of shape {shape}"
        for other in found[number + 1 :]:
            if other.offset[0] >= box.offset[0] + box.shape[0]:
                break  # sorted by the first dim: nothing behind it can overlap
            if box.intersect(other) is not None:
                return f"boxes {box.offset}+{box.shape} and {other.offset}+{other.shape} overlap"
    count = sum(box.numel for box in found)
    if count != whole.numel:
        return f"{whole.numel - count} of {whole.numel} elements are in no box"
    return None


@dataclass(slots=True)
class _Account:
    shape: tuple[int, ...]
    boxes: list[Box] = field(default_factory=list)
    digest: str | None = None


class Ledger:
    """Record every copy of a conversion and balance the books at the end.

    Args:
        sources: Shapes of all tensors to be read.
        targets: Shapes of all tensors to be written.
    """

    def __init__(self, *, sources: Mapping[str, tuple[int, ...]], targets: Mapping[str, tuple[int, ...]]) -> None:
        self._sources = {name: _Account(shape) for name, shape in sources.items()}
        self._targets = {name: _Account(shape) for name, shape in targets.items()}
        self._ignored: dict[str, str] = {}
        self._copies = 0
        self._merged: list[str] = []

    def copy(self, *, source: str, source_box: Box, target: str, target_box: Box) -> None:
        """Record that a box of a source was copied to a box of a target.

        Raises:
            ConvertError: One of the names is unknown, or the boxes differ in size.
        """
        if source not in self._sources or target not in self._targets:
            raise ConvertError(f"the ledger knows no copy from {source!r} to {target!r}; this is a bug of llama-scale")
        if source_box.numel != target_box.numel:
            raise ConvertError(
                f"{source} {source_box.shape} was copied to {target} {target_box.shape}, which is another number of "
                "elements; this is a bug of llama-scale"
            )
        self._sources[source].boxes.append(source_box)
        self._targets[target].boxes.append(target_box)
        self._copies += 1

    def merge(self, source: str) -> None:
        """Record that a source went as a whole into targets that are copies of other sources (an adapter's tensor)."""
        self._sources[source].boxes.append(Box.whole(self._sources[source].shape))
        self._merged.append(source)

    def digest_source(self, name: str, digest: str) -> None:
        """Note a digest of a source tensor: ``sha256:...`` of its bytes, or the checkpoint's own ``piecewise:...``."""
        self._sources[name].digest = digest

    def digest_target(self, name: str, digest: str) -> None:
        """Note a digest of a target tensor, as for a source."""
        self._targets[name].digest = digest

    def ignore(self, name: str, reason: str) -> None:
        """Note a tensor in the source folder that carries no weight of the model, and why it was left out."""
        self._ignored[name] = reason

    def balance(self) -> None:
        """Check the books.

        Raises:
            ConvertError: A source element was not used exactly once or a target element not written exactly once;
                all such tensors are named.
        """
        faults = [
            f"{side} {name}: {fault}"
            for side, accounts in (("source", self._sources), ("target", self._targets))
            for name, account in accounts.items()
            if (fault := _covers_once(account.boxes, account.shape)) is not None
        ]
        if faults:
            shown = "\n  ".join(faults[:10] + ([f"... {len(faults) - 10} more"] if len(faults) > 10 else []))
            raise ConvertError(f"the conversion's ledger does not balance:\n  {shown}")

    def report(self) -> dict[str, Any]:
        """Return the books as JSON-able data: counts, and per tensor its shape, slices and digest."""

        def table(accounts: dict[str, _Account]) -> dict[str, Any]:
            return {
                name: {"shape": list(a.shape), "slices": len(a.boxes), "digest": a.digest}
                for name, a in accounts.items()
            }

        def elements(accounts: dict[str, _Account]) -> int:
            return sum(Box.whole(a.shape).numel for a in accounts.values())

        return {
            "counts": {
                "source_tensors": len(self._sources),
                "source_elements": elements(self._sources),
                "target_tensors": len(self._targets),
                "target_elements": elements(self._targets),
                "copies": self._copies,
                "ignored": len(self._ignored),
            },
            "sources": table(self._sources),
            "targets": table(self._targets),
            "ignored": self._ignored,
            "merged": self._merged,
        }
