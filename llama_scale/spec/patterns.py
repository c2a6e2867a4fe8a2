"""What the patterns of text fields mean, in words: what a value that does not match is not, and what to write."""

from __future__ import annotations

from typing import Final

from llama_scale.spec import launcher_fields, launcher_kubernetes, launcher_slurm
from llama_scale.spec.base import NAME_PATTERN, PATH_PATTERN
from llama_scale.spec.hostfile import HOST_PATTERN
from llama_scale.spec.model import BASE_NAME_PATTERN

PATTERN_RULES: Final[dict[str, tuple[str, str]]] = {
    NAME_PATTERN: (
        "is not a name",
        "use letters, digits, '.', '_' and '-', at most 64, the first a letter or a digit",
    ),
    PATH_PATTERN: ("is not a path", "write a path that is not empty and holds no NUL"),
    BASE_NAME_PATTERN: ("is not a name", "write the path or the hub's name of the folder, on one line"),
    HOST_PATTERN: ("is not a host", "write a name or an IPv4 address: letters, digits, '.', '_' and '-'"),
    launcher_fields.VARIABLE_PATTERN: (
        "is not a variable's name",
        "use letters, digits and '_', the first no digit; its value is never written here",
    ),
    launcher_fields.ABSOLUTE_PATH_PATTERN: ("is not an absolute path", "begin it with '/', on one line"),
    launcher_slurm.TIME_PATTERN: ("is not a time limit", "write minutes, HH:MM:SS or D-HH[:MM:SS], e.g. 4:00:00"),
    launcher_slurm.SLURM_NAME_PATTERN: (
        "is not a name that Slurm knows",
        "use letters, digits, '_', '.', '@', '+' and '-'; commas join several",
    ),
    launcher_slurm.OPTION_PATTERN: (
        "cannot stand in an #SBATCH line",
        "write one line without double quote and backslash",
    ),
    launcher_slurm.MOUNT_PATTERN: ("is not a mount", "write /SOURCE, /SOURCE:/TARGET or /SOURCE:/TARGET:ro"),
    launcher_slurm.IMAGE_FILE_PATTERN: (
        "is not an image",
        "write a registry's name or the path of a .sqsh or .sif file, on one line and without a leading '-'",
    ),
    launcher_kubernetes.IMAGE_NAME_PATTERN: (
        "is not an image",
        "write a registry's name, e.g. registry.example/llama-scale:1.0",
    ),
    launcher_kubernetes.LABEL_PATTERN: (
        "is not a name of Kubernetes",
        "use lower-case letters, digits and '-', at most 63, both ends a letter or a digit",
    ),
    launcher_kubernetes.OBJECT_NAME_PATTERN: (
        "is not the name of an object of Kubernetes",
        "use lower-case letters, digits, '-' and '.', at most 253, both ends a letter or a digit",
    ),
    launcher_kubernetes.QUALIFIED_PATTERN: (
        "is not the name of a label, resource or taint",
        "write [DOMAIN/]NAME, e.g. nvidia.com/gpu",
    ),
    launcher_kubernetes.QUANTITY_PATTERN: ("is not a quantity of Kubernetes", "write e.g. 4, 500m or 64Gi"),
}
