"""What is written on any layout is read back bit for bit on any other."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llama_scale.checkpoint.digest import parameter_digest, piece_digest
from llama_scale.checkpoint.manifest import MANIFEST, load_manifest
from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.checkpoint.safetensors_file import SafetensorsFile
from llama_scale.checkpoint.writer import ShardWriter, build_manifest
from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box
from tests.properties import examples
from tests.unit.checkpoint.cuts import Cut, boxes, cut_of, cuts, save, shapes

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 100
    return values.abs().to(dtype) if dtype == torch.uint8 else values.to(dtype)


@examples(60)
@given(st.data())
def test_any_cut_is_reassembled_bit_for_bit(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    tensor = random_tensor(shape, data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(0, 99)))
    pieces = data.draw(cuts(tensor))
    shards: list[list[Cut]] = [[], [], []]
    for piece in pieces:
        shards[data.draw(st.integers(0, 2))].append(piece)
    other = data.draw(boxes(shape))
    with tempfile.TemporaryDirectory() as folder:
        saved = save(Path(folder), [pieces for pieces in shards if pieces])
        reader = CheckpointReader(saved, verify="hashes")

        assert torch.equal(reader.read("model", "w"), tensor)
        for box in other:
            expected = tensor[box.slices_within(Box.whole(shape))]
            assert torch.equal(reader.read("model", "w", box), expected)
            start = data.draw(st.integers(0, box.numel))
            numel = data.draw(st.integers(0, box.numel - start))
            part = reader.read_range("model", "w", box, start=start, numel=numel)
            assert torch.equal(part, expected.reshape(-1)[start : start + numel])
        whole = Piece(group="model", name="w", box=Box.whole(shape), flat_start=None, numel=tensor.numel())
        assert reader.entry("model", "w").digest == f"{piece_digest(tensor, whole):016x}"


def test_layouts_of_the_same_weights_have_one_parameter_digest(tmp_path: Path) -> None:
    w, v = torch.randn(4, 6), torch.randn(5)
    left, right = Box((0, 0), (4, 3)), Box((0, 3), (4, 3))
    one = save(tmp_path / "a", [[cut_of(w, Box.whole((4, 6))), cut_of(v, Box.whole((5,)), name="v")]])
    two = save(
        tmp_path / "b",
        [[cut_of(w, left), cut_of(w, right, (0, 5))], [cut_of(v, Box.whole((5,)), name="v"), cut_of(w, right, (5, 7))]],
    )
    digest = load_manifest(one).parameter_digest
    assert load_manifest(two).parameter_digest == digest
    assert digest == parameter_digest(load_manifest(one).tensors["model"])
    w[1, 2] += 1
    three = save(tmp_path / "c", [[cut_of(w, Box.whole((4, 6))), cut_of(v, Box.whole((5,)), name="v")]])
    assert load_manifest(three).parameter_digest != digest


def test_reading_into_another_type_converts(tmp_path: Path) -> None:
    w = torch.randn(3, 4)
    saved = save(tmp_path, [[cut_of(w, Box.whole((3, 4)))]])
    out = torch.empty(3, 4, dtype=torch.bfloat16)
    assert CheckpointReader(saved).read("model", "w", out=out) is out
    assert torch.equal(out, w.bfloat16())


def test_the_safetensors_library_reads_a_shard(tmp_path: Path) -> None:
    w, n, h = torch.randn(4, 6), torch.arange(3), torch.randn(5).bfloat16()
    saved = save(
        tmp_path,
        [
            [
                cut_of(h, Box.whole((5,)), name="h"),  # 10 bytes: would misalign what follows if not sorted
                cut_of(w, Box((0, 0), (4, 6)), (3, 7)),
                cut_of(n, Box.whole((3,)), name="n"),
                cut_of(w, Box((0, 0), (4, 6)), (0, 3)),
                cut_of(w, Box((0, 0), (4, 6)), (10, 14)),
            ]
        ],
    )
    shard = saved / "shard-00000.safetensors"
    loaded = load_file(shard)
    assert torch.equal(loaded["model/w[0:4,0:6]@3+7"], w.reshape(-1)[3:10])
    assert torch.equal(loaded["model/n[0:3]"], n)
    assert torch.equal(loaded["model/h[0:5]"], h)
    with safe_open(shard, "pt") as file:
        assert file.metadata() == {"format": "llama-scale-1"}
    assert set(loaded) == set(load_manifest(saved).shards[0].pieces)
    ours = SafetensorsFile(shard)
    assert all(spec.begin % spec.dtype.itemsize == 0 for spec in ours.arrays.values())
    assert ours._data_at % 8 == 0


def test_files_of_the_safetensors_library_are_read(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.randn(7).bfloat16(),
        "c": torch.tensor([True, False]),
        "d": torch.tensor(4, dtype=torch.int64),
        "e": torch.empty(0, 3),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    assert set(file.arrays) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(file.tensor(name), tensor)
        assert file.tensor(name).shape == tensor.shape
    file.release()
    assert torch.equal(file.tensor("a"), tensors["a"])
    with pytest.raises(CheckpointError, match="has no tensor 'z'"):
        file.tensor("z")


def test_pieces_are_loaded_one_at_a_time_when_written(tmp_path: Path) -> None:
    order: list[str] = []
    writer = ShardWriter(tmp_path / "s.safetensors")
    for name in ("a", "b"):
        box = Box.whole((2,))
        piece = Piece(group="model", name=name, box=box, flat_start=None, numel=2)

        def load(name: str = name) -> torch.Tensor:
            order.append(name)
            return torch.ones(2)

        writer.add_lazy(piece, global_shape=(2,), dtype=torch.float32, load=load)
    assert (order, writer.data_bytes) == ([], 16)
    writer.finish()
    assert order == ["a", "b"]


def test_empty_pieces_are_left_out(tmp_path: Path) -> None:
    w = torch.randn(4)
    saved = save(tmp_path, [[cut_of(w, Box.whole((4,))), cut_of(w, Box((4,), (0,)))]])
    assert list(load_manifest(saved).shards[0].pieces) == ["model/w[0:4]"]
    assert CheckpointReader(saved).read("model", "w", Box((4,), (0,))).shape == (0,)


def test_a_manifest_with_a_hole_is_not_made(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s.safetensors")
    writer.add(cut_of(torch.randn(4), Box((0,), (2,))))
    shard = writer.finish()
    with pytest.raises(CheckpointError, match=r"only 2 of the 4 elements of model/w \[4\] are stored"):
        build_manifest([shard], step=1)
    assert not (tmp_path / MANIFEST).exists()


def test_ranks_that_disagree_are_refused(tmp_path: Path) -> None:
    shards = []
    for rank, size in enumerate((4, 5)):
        writer = ShardWriter(tmp_path / f"{rank}.safetensors")
        writer.add(cut_of(torch.randn(size), Box.whole((size,))))
        shards.append(writer.finish())
    with pytest.raises(CheckpointError, match="ranks disagree on model/w"):
        build_manifest(shards, step=1)
