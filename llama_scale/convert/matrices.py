"""The matrices of a Hugging Face folder beside those of a checkpoint, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from llama_scale.convert.folders import Progress
from llama_scale.convert.hf_weights import HfWeights
from llama_scale.convert.inventory import check_inventory
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.merge import Merger
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError
from llama_scale.layout.parameters import EMBEDDING
from llama_scale.spec.model import ModelShape


class Matrices:
    """Compare a folder's safetensors with what an export of the checkpoint writes.

    Attributes:
        dtype: Element type in which they are compared: the coarser of the two sides', since the finer one was rounded.
        note: What to tell about that.
        tensors: Number of tensors.
        total_bytes: Of the folder's files.

    Args:
        weights: The checkpoint.
        folder: The Hugging Face folder.
        merger: The adapter that is in the folder's matrices.

    Raises:
        ConvertError: The folder is damaged or has other tensors than such a model.
    """

    def __init__(self, weights: Weights, folder: Path, *, merger: Merger | None) -> None:
        self._weights = weights
        self._merger = merger
        self._files = HfWeights(folder)
        check_inventory(self._files, weights.shape)
        self._tensors = hf_tensors(weights.shape)
        theirs = {self._files.dtype(name) for name in self._files.names}
        fp32 = weights.group(EMBEDDING, torch.float32) == "master" or weights.dtype == torch.float32
        coarse = torch.bfloat16 in theirs or not (fp32 or merger is not None)
        self.dtype = torch.bfloat16 if coarse else torch.float32
        alike = theirs == {self.dtype} and (weights.dtype == self.dtype or not coarse)
        self.note = "" if alike or not coarse else "weights rounded to bf16 on both sides"
        self.tensors = len(self._tensors)
        self.total_bytes = self._files.total_bytes

    def differing(self, progress: Progress) -> Iterator[str]:
        """Yield the names of tensors that differ."""
        for tensor in self._tensors.values():
            theirs = self._files.map(tensor.name)
            if self._merger is not None and self._merger.touches(tensor.name):
                ours = self._merger.tensor(tensor, dtype=self.dtype)
            else:
                ours = self._weights.hf_tensor(tensor, dtype=self.dtype)
            if not same_bits(ours, theirs, dtype=self.dtype):
                yield tensor.name
            progress.advance(theirs.numel() * theirs.element_size())
            self._files.release(tensor.name)
            self._weights.release()


def check_same_numbers(weights: Weights, shape: ModelShape, *, folder: Path) -> None:
    """Refuse a folder of another model.

    Raises:
        ConvertError: Names the numbers that differ.
    """
    theirs, ours = shape.model_dump(), weights.shape.model_dump()
    wrong = [f"{key} is {theirs[key]} there and {ours[key]} here" for key in ours if theirs[key] != ours[key]]
    if wrong:
        raise ConvertError(f"{folder} is another model than the checkpoint: {'; '.join(wrong)}")


def same_bits(one: torch.Tensor, two: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> bool:
    """Tell whether two tensors, rounded to an element type, have the same shape and bits."""
    first, second = (x.to(dtype).contiguous().view(torch.uint8) for x in (one, two))
    return one.shape == two.shape and bool(torch.equal(first, second))
