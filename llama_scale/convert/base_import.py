"""The weights of a Hugging Face folder for runs: imported once beside the run folders and proven against the source."""

from __future__ import annotations

from pathlib import Path

from llama_scale.checkpoint.bases import (
    ImportedBase,
    find_imported,
    locked,
    remove,
    remove_unfinished,
    source_digest,
    source_key,
)
from llama_scale.checkpoint.manifest import StartRecord
from llama_scale.convert.folders import Progress
from llama_scale.convert.hf_config import read_shape
from llama_scale.convert.hf_weights import HfWeights
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.import_proof import import_proof
from llama_scale.convert.inventory import DTYPES
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.shards import Layout
from llama_scale.errors import ConvertError
from llama_scale.spec.start_folder import FolderFault


def import_base(source: Path, bases: Path, *, layout: Layout, progress: Progress | None = None) -> ImportedBase:
    """Return the imported weights of a Hugging Face folder; import them if nobody has, or if the folder has changed.

    Of several processes that ask at once, one imports and the others wait for it.

    Args:
        source: Folder with config.json and safetensors.
        bases: Folder of imported weights; made if it is missing.
        layout: How the tensors are cut into shards where they have to be imported.
        progress: Is told of the bytes written and compared.

    Raises:
        ConvertError: The folder cannot be imported (see ``import_hf``), there is no room for it, it changed meanwhile,
            or the imported model is not transformers' model of the folder.
    """
    source = source.absolute()
    try:
        key = source_key(source)
        found = find_imported(bases, key)
        if found is not None:
            return found
        with locked(bases, key):
            found = find_imported(bases, key)
            if found is not None:
                return found
            remove_unfinished(bases, key)
            remove(bases, key)  # damaged, or it would have been found
            proof = import_proof(source, layout=layout, progress=progress)
            dtype = _exact_dtype(source)
            import_hf(source, bases / key, layout=layout, dtype=dtype, proof=proof, progress=progress)
            found = find_imported(bases, key)
            if found is None or source_key(source) != key:
                remove(bases, key)
                raise ConvertError(f"{source} was changed while it was imported; start again once it is whole")
            return found
    except FolderFault as error:
        raise ConvertError(f"{error}; give the whole folder") from error
    except OSError as error:
        place = error.filename or bases
        raise ConvertError(f"the weights of {source} cannot be imported: {place}: {error.strerror}") from error


def _exact_dtype(source: Path) -> str | None:
    """Return the element type that loses nothing: the files' own, or fp32 for fp16 and for several types."""
    weights = HfWeights(source)
    wanted = hf_tensors(read_shape(source))
    found = {weights.dtype(name) for name in wanted if name in weights.names}
    exact = all(dtype.is_floating_point and dtype.itemsize <= 4 for dtype in found)
    return "fp32" if exact and not (len(found) == 1 and found <= set(DTYPES.values())) else None


def import_again(record: StartRecord, bases: Path, *, layout: Layout, progress: Progress | None = None) -> ImportedBase:
    """Import once more the weights of a Hugging Face folder that a run started from; its imported copy is gone.

    Args:
        record: What the run started from, of kind ``folder``.
        bases: Folder of imported weights.
        layout: See ``import_base``.
        progress: See ``import_base``.

    Raises:
        ConvertError: The folder is gone or has changed, or cannot be imported.
    """
    gone = f"their imported copy {record.weights} is gone or damaged"
    source = Path(record.path or "")
    if not source.is_dir():
        raise ConvertError(f"{gone}, and {source}, where they came from, is not there; put one of the two back")
    try:
        digest = source_digest(source)
    except (OSError, FolderFault) as error:
        raise ConvertError(f"{gone}, and {source}, where they came from, cannot be read: {error}") from error
    if digest != record.digest:
        raise ConvertError(
            f"{gone}, and {source} has changed since: its digest is {digest[:12]}, and the run's weights had "
            f"{str(record.digest)[:12]}; put back the folder as it was, or the imported copy"
        )
    return import_base(source, bases, layout=layout, progress=progress)
