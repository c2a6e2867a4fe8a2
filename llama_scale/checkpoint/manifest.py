"""The manifest: what a checkpoint holds, who wrote it and where training stood. It is written last; no torch here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from llama_scale.checkpoint.pieces import Piece
from llama_scale.errors import CheckpointError
from llama_scale.spec.adapters import Adapter, Mixture, Task
from llama_scale.spec.base import NonNegativeInt, PositiveFloat, PositiveInt, Section
from llama_scale.spec.model import ModelShape

FORMAT: Final = 1
"""Version of the format this code writes, and the newest it reads."""

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d{8,})(\.old-[0-9a-f]+)?")

Dtype = Literal["float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8"]
HexSha256 = Field(pattern=r"^[0-9a-f]{64}$")


class TensorEntry(Section):
    """Describe one logical tensor."""

    shape: tuple[NonNegativeInt, ...] = Field(description="Shape of the whole tensor.")
    dtype: Dtype = Field(description="Element type as torch names it.")
    digest: str = Field(pattern=r"^[0-9a-f]{16}$", description="Sum of its pieces' digests mod 2^64 (see digest.py).")


class ShardEntry(Section):
    """Describe one shard file."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="File name inside the checkpoint's folder.")
    bytes: PositiveInt = Field(description="Size of the file.")
    sha256: str = HexSha256
    pieces: dict[str, str] = Field(description="Key of each piece in the file -> its digest, 16 hex digits.")


class TopologyRecord(Section):
    """The layout that wrote the checkpoint; reading needs none of it, `resume --plan` compares it."""

    dp_size: PositiveInt = Field(1, description="Data parallel replicas.")
    tp_size: PositiveInt = Field(1, description="Tensor parallel ranks.")
    pp_size: PositiveInt = Field(1, description="Pipeline stages.")
    stages: tuple[tuple[tuple[NonNegativeInt, ...], ...], ...] = Field(
        (), description="Layers of each chunk, by stage and virtual stage; empty where no model was laid out."
    )


class BaseRecord(Section):
    """The frozen base that a checkpoint's weights are put on; the checkpoint holds none of it."""

    kind: Literal["seed", "checkpoint"] = Field(description="Drawn from a seed, or loaded from a checkpoint.")
    path: str | None = Field(None, description="Folder of that checkpoint when training started.")
    parameter_digest: str | None = Field(None, description="Its parameter_digest: another base is refused.")
    seed: int | None = Field(None, description="Seed that the base's weights were drawn from.")
    init_std: PositiveFloat | None = Field(None, description="Standard deviation that they were drawn with.")
    dtype: Dtype = Field("float32", description="Element type that the base was computed in.")


class StartRecord(Section):
    """Where a run's weights came from before its first step (``base.json`` of a run folder, and its manifests)."""

    kind: Literal["seed", "folder", "checkpoint"] = Field(
        description="Drawn from a seed, or loaded from a Hugging Face folder or a checkpoint."
    )
    name: str | None = Field(None, description="What the spec calls the folder; exports carry no other path of it.")
    path: str | None = Field(None, description="Absolute path of the folder when the run started.")
    digest: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="Of a Hugging Face folder: SHA-256 of its config and weight files; of a checkpoint: its "
        "parameter_digest.",
    )
    weights: str | None = Field(
        None, description="Checkpoint folder that they are read from: of a Hugging Face folder, the imported copy."
    )
    adapters: str | None = Field(None, description="Checkpoint whose adapters on that base the run went on from.")
    seed: int | None = Field(None, description="Seed that the weights were drawn from.")
    init_std: PositiveFloat | None = Field(None, description="Standard deviation that they were drawn with.")

    def words(self) -> str:
        """Say it in a few words, for logs and tables."""
        if self.kind == "seed":
            return f"drawn from seed {self.seed}"
        return f"{self.name or self.path}, digest {self.digest[:12] if self.digest else 'not known'}"


class ExtensionRecord(Section):
    """What the checkpoint's tensors besides the base's are of: the spec's sections, options filled in."""

    seed: int = Field(description="The run's seed, which adapters may draw fixed values from.")
    adapters: tuple[Adapter, ...] = Field((), description="Section adapters.")
    tasks: tuple[Task, ...] = Field((), description="Section tasks.")
    mixture: Mixture | None = Field(None, description="Section mixture.")


class Manifest(Section):
    """Everything about a checkpoint but the tensors' bytes."""

    format: Literal[1] = Field(FORMAT, description="Version of the format.")
    step: NonNegativeInt = Field(description="Training steps done.")
    optimizer_step: NonNegativeInt = Field(0, description="Optimizer updates done (skipped steps do not count).")
    samples: NonNegativeInt = Field(description="Samples consumed: the data position.")
    spec_digest: str | None = Field(None, description="Digest of the spec that trained; null for an import.")
    engine: str = Field(description="Engine that wrote it: megatron, deepspeed, ddp, or import.")
    topology: TopologyRecord = Field(description="Layout that wrote it.")
    shape: ModelShape = Field(description="The model's numbers.")
    vocab_pad_multiple: PositiveInt = Field(128, description="Padding of the vocabulary in memory; not stored.")
    base: BaseRecord | None = Field(None, description="Frozen base; null where the checkpoint holds all weights.")
    started_from: StartRecord | None = Field(
        None, description="Where the run's weights came from; null for an import, and where version 0.1 wrote it."
    )
    extensions: ExtensionRecord | None = Field(None, description="Adapters, task heads and mixture, if there are any.")
    tensors: dict[str, dict[str, TensorEntry]] = Field(description="Group -> name -> tensor.")
    shards: tuple[ShardEntry, ...] = Field(description="The files, in the order of the ranks.")
    rng: dict[str, Any] = Field(default_factory=dict, description="Seed and which random states are stored.")
    schedule: dict[str, Any] = Field(default_factory=dict, description="State of the learning rate schedule.")
    metrics: dict[str, float | None] = Field(default_factory=dict, description="E.g. validation_loss, for keep_best.")
    parameter_digest: str = HexSha256
    versions: dict[str, str] = Field(default_factory=dict, description="Package -> version that wrote it.")
    created_utc: str = Field(description="Time of writing, ISO 8601.")

    @cached_property
    def locations(self) -> dict[tuple[str, str], list[tuple[int, Piece]]]:
        """Map (group, name) to the pieces stored of it, each with its index in ``shards``."""
        found: dict[tuple[str, str], list[tuple[int, Piece]]] = {}
        for index, shard in enumerate(self.shards):
            for key in shard.pieces:
                piece = Piece.parse(key)
                found.setdefault((piece.group, piece.name), []).append((index, piece))
        return found

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)


def checkpoint_name(step: int) -> str:
    """Return the folder name of a step's checkpoint: ``step-00000100``."""
    return f"step-{step:08d}"


def load_manifest(folder: Path) -> Manifest:
    """Read and check a checkpoint's manifest (not its shards: see ``verify_files``).

    Raises:
        CheckpointError: There is none, it is no JSON, was written by a newer format or breaks the schema.
    """
    path = Path(folder) / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = "has no manifest.json (saving it was not finished)" if path.parent.is_dir() else "does not exist"
        raise CheckpointError(
            f"{folder} is no complete checkpoint: it {what}; give a folder such as RUN/checkpoints/step-00000100"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    remedy = f"restore it, or remove the folder {folder} to resume from the checkpoint before it"
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is no JSON ({error}); {remedy}") from None
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}; this llama-scale reads formats up to {FORMAT}: update llama-scale"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path} is damaged: {where or 'document'}: {first['msg']}; {remedy}") from None


def list_complete(checkpoints_dir: Path) -> list[Path]:
    """Return the folders of all complete checkpoints (those that have a manifest), oldest step first.

    Raises:
        CheckpointError: The folder exists and cannot be read.
    """
    found: list[tuple[int, bool, Path]] = []
    try:
        if not Path(checkpoints_dir).is_dir():
            return []
        for folder in Path(checkpoints_dir).iterdir():
            match = _FOLDER.fullmatch(folder.name)
            if match and (folder / MANIFEST).exists():
                found.append((int(match[1]), match[2] is None, folder))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}; check its permissions") from error
    return [folder for _, _, folder in sorted(found)]


def newest_complete(checkpoints_dir: Path) -> Path | None:
    """Return the newest complete checkpoint's folder, or None.

    Complete means that it has its final name and a manifest: what was killed while saving has neither. Damage that
    came later is not walked past silently: ``load_manifest`` and ``verify_files`` refuse it by name.
    """
    complete = list_complete(checkpoints_dir)
    return complete[-1] if complete else None


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_files(
    folder: Path,
    *,
    manifest: Manifest | None = None,
    shards: Iterable[ShardEntry] | None = None,
    hashes: bool = True,
    threads: int = 1,
) -> None:
    """Check a checkpoint's files against its manifest.

    Args:
        folder: The checkpoint.
        manifest: Its manifest, if already loaded.
        shards: Only these of its shards (ranks share the work); default: all.
        hashes: Compare SHA-256 too, not only existence and size.
        threads: Files to hash at a time.

    Raises:
        CheckpointError: A file is missing, has another size or another hash; the message names it.
    """
    folder = Path(folder)
    chosen = (manifest or load_manifest(folder)).shards if shards is None else tuple(shards)
    check = partial(_damage, folder, hashes=hashes)
    if hashes and threads > 1:
        with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
            found = list(pool.map(check, chosen))
    else:
        found = list(map(check, chosen))
    for shard, problem in zip(chosen, found, strict=True):
        if problem:
            raise CheckpointError(
                f"checkpoint {folder.name} is damaged: {folder / shard.file}: {problem}; restore the file from a copy, "
                f"or remove the folder {folder} to go on from the checkpoint before it"
            )


def _damage(folder: Path, shard: ShardEntry, *, hashes: bool) -> str:
    """Return what is wrong with a shard's file; empty if nothing is."""
    path = folder / shard.file
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"it has {size} bytes, its manifest says {shard.bytes}"
        if hashes and file_sha256(path) != shard.sha256:
            return "its SHA-256 is not the one in its manifest"
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return ""
