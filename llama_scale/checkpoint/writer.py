"""Writing: one shard a rank, streamed and hashed in one pass; the manifest; then the rename that makes it count."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from llama_scale.checkpoint.digest import add_digests, parameter_digest, piece_digest
from llama_scale.checkpoint.manifest import MANIFEST, Manifest, ShardEntry, TensorEntry
from llama_scale.checkpoint.pieces import Piece, check_cover
from llama_scale.checkpoint.safetensors_file import dtype_name, encode_header, flat_view, layout_arrays
from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box

_CHUNK_BYTES = 8 << 20
_PACKAGES = ("llama-scale", "torch", "megatron-core", "deepspeed")


class TensorPiece(Protocol):
    """What a writer needs of a piece; ``train.engine.LocalPiece`` is one."""

    @property
    def group(self) -> str:
        """Kind of tensor."""

    @property
    def name(self) -> str:
        """Name of the logical tensor."""

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Shape of the logical tensor."""

    @property
    def box(self) -> Box:
        """Part of it."""

    @property
    def flat_start(self) -> int | None:
        """First element of the range inside the box; None: the whole box."""

    @property
    def tensor(self) -> torch.Tensor:
        """The elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A finished shard and the logical tensors its pieces belong to.

    Args:
        entry: The shard's row of the manifest.
        tensors: (group, name) -> (global shape, dtype name).
    """

    entry: ShardEntry
    tensors: dict[tuple[str, str], tuple[tuple[int, ...], str]]


class ShardWriter:
    """Write one safetensors file of pieces in bounded memory.

    ``add`` and ``add_lazy`` only note the pieces; ``finish`` writes them one at a time, each loaded when its turn
    comes, and hashes what it writes.

    Args:
        path: The file; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._pieces: dict[str, tuple[Piece, torch.dtype, Callable[[], torch.Tensor]]] = {}
        self._tensors: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {}

    def add(self, piece: TensorPiece) -> None:
        """Note a piece whose tensor is in memory; it is read in ``finish``."""
        tensor = piece.tensor
        described = Piece(
            group=piece.group, name=piece.name, box=piece.box, flat_start=piece.flat_start, numel=tensor.numel()
        )
        self.add_lazy(described, global_shape=piece.global_shape, dtype=tensor.dtype, load=lambda: tensor)

    def add_lazy(
        self,
        piece: Piece,
        *,
        global_shape: tuple[int, ...],
        dtype: torch.dtype,
        load: Callable[[], torch.Tensor],
    ) -> None:
        """Note a piece whose elements ``load()`` will give when it is written; empty pieces are left out."""
        if piece.numel == 0:
            return
        assert piece.key not in self._pieces, f"{piece.key} is added twice to one shard"
        self._pieces[piece.key] = (piece, dtype, load)
        self._tensors[piece.group, piece.name] = (tuple(global_shape), dtype_name(dtype))

    @property
    def data_bytes(self) -> int:
        """Bytes of all pieces noted so far."""
        return sum(piece.numel * dtype.itemsize for piece, dtype, _ in self._pieces.values())

    def finish(self) -> WrittenShard:
        """Write the file, flush it to the disk and describe it.

        Raises:
            CheckpointError: The disk is full, or the file cannot be created or written; the partial file is removed.
        """
        rows = [(key, dtype, piece.stored_shape) for key, (piece, dtype, _) in self._pieces.items()]
        arrays = layout_arrays(rows)
        header = encode_header(arrays, metadata={"format": "llama-scale-1"})
        total = len(header) + self.data_bytes
        digests: dict[str, str] = {}
        try:
            with _HashedFile(self.path) as file:
                file.write(memoryview(header))
                for key, spec in arrays.items():
                    piece, _, load = self._pieces[key]
                    tensor = load().detach().cpu()
                    assert tensor.dtype == spec.dtype and tensor.numel() == piece.numel, key
                    file.write(memoryview(flat_view(tensor, torch.uint8).numpy()))
                    digests[key] = f"{piece_digest(tensor, piece):016x}"
                file.sync()
        except OSError as error:
            if not isinstance(error, FileExistsError):  # else it is somebody else's
                with contextlib.suppress(OSError):
                    self.path.unlink()
            raise _write_error(error, self.path, needed=total) from error
        entry = ShardEntry(file=self.path.name, bytes=total, sha256=file.sha256, pieces=digests)
        return WrittenShard(entry=entry, tensors=self._tensors)


class _HashedFile:
    """A new file that is hashed while it is written; never overwrites."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._hash = hashlib.sha256()

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def write(self, data: memoryview) -> None:
        """Write all of it, in chunks that are hashed while they are in the cache."""
        for at in range(0, len(data), _CHUNK_BYTES):
            chunk = data[at : at + _CHUNK_BYTES]
            self._hash.update(chunk)
            while chunk:
                chunk = chunk[os.write(self._fd, chunk) :]  # a nearly full disk takes a part before it fails

    def sync(self) -> None:
        """Flush to the disk."""
        os.fsync(self._fd)

    @property
    def sha256(self) -> str:
        """Hash of everything written, in hex."""
        return self._hash.hexdigest()


def _write_error(error: OSError, path: Path, *, needed: int) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        return CheckpointError(
            f"cannot save into {path.parent}: {path.name} needs {needed} bytes, {free} are free "
            f"({error.strerror}); free space or lower checkpoint.keep_last"
        )
    if error.errno == errno.EEXIST:
        return CheckpointError(f"cannot save: {path} exists; another process is writing into the same folder")
    return CheckpointError(f"cannot save into {path.parent}: {error.strerror or error}; check the folder's permissions")


def build_manifest(shards: Sequence[WrittenShard], *, versions: dict[str, str] | None = None, **facts: Any) -> Manifest:
    """Make the manifest of finished shards, checking that they hold every element exactly once.

    Args:
        shards: All shards, in the order of the ranks.
        versions: Packages that wrote it; default: those installed here.
        facts: The other fields of ``Manifest``: step, samples, engine, topology, shape, ...

    Raises:
        CheckpointError: An element of a tensor is missing or stored twice, or two ranks disagree on a tensor.
    """
    tensors: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {}
    pieces: dict[tuple[str, str], list[Piece]] = {}
    digests: dict[tuple[str, str], int] = {}
    for shard in shards:
        for ident, described in shard.tensors.items():
            if tensors.setdefault(ident, described) != described:
                raise CheckpointError(f"ranks disagree on {'/'.join(ident)}: {tensors[ident]} and {described}")
        for key, share in shard.entry.pieces.items():
            piece = Piece.parse(key)
            ident = (piece.group, piece.name)
            pieces.setdefault(ident, []).append(piece)
            digests[ident] = add_digests(digests.get(ident, 0), int(share, 16))
    groups: dict[str, dict[str, TensorEntry]] = {}
    for (group, name), (shape, dtype) in tensors.items():
        check_cover(shape, pieces[group, name])
        entry = TensorEntry.model_validate({"shape": shape, "dtype": dtype, "digest": f"{digests[group, name]:016x}"})
        groups.setdefault(group, {})[name] = entry
    return Manifest(
        tensors=groups,
        shards=tuple(shard.entry for shard in shards),
        parameter_digest=parameter_digest(groups.get("model", {})),
        versions=installed_versions() if versions is None else versions,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    )


def installed_versions() -> dict[str, str]:
    """Return package -> version for those packages that can have a part in writing a checkpoint."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(tmp: Path, final: Path, manifest: Manifest) -> None:
    """Write the manifest into ``tmp``, flush everything and rename the folder: from then on it counts.

    A checkpoint that already has the name stays whole under ``NAME.old-*`` until the new one is in place.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written; what was complete before is untouched.
    """
    seal(tmp, manifest)
    publish(tmp, final)


def seal(tmp: Path, manifest: Manifest) -> None:
    """Do the first half of ``commit``: from then on the folder can be read, but it has no name that counts."""
    text = manifest.model_dump_json().encode()
    path = tmp / MANIFEST
    try:
        with _HashedFile(path) as file:
            file.write(memoryview(text))
            file.sync()
    except OSError as error:
        raise _write_error(error, path, needed=len(text)) from error


def publish(tmp: Path, final: Path) -> None:
    """Do the second half of ``commit``."""
    try:
        sync_folder(tmp)
        old = final.with_name(f"{final.name}.old-{os.urandom(4).hex()}")
        replaced = final.exists()
        if replaced:
            final.rename(old)
        tmp.rename(final)
        sync_folder(final.parent)
        if replaced:
            shutil.rmtree(old)
    except OSError as error:
        raise _write_error(error, tmp / MANIFEST, needed=0) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (names and renames) to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_free_space(folder: Path, *, needed_bytes: Iterable[int]) -> None:
    """Refuse to start writing what cannot fit.

    Raises:
        CheckpointError: The file system of ``folder`` has less free space than all the parts need together.
    """
    needed = sum(needed_bytes)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"cannot save into {folder}: {needed} bytes are needed, {free} are free; free space or lower "
            "checkpoint.keep_last"
        )
