"""Accelerators and what they can do at most, each row with its source; a user's own hardware comes from YAML."""

from __future__ import annotations

import re
from typing import Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from llama_scale.errors import Problem, SpecError
from llama_scale.spec.base import Name, PositiveFloat, PositiveInt, Section

Dtype = Literal["bf16", "fp8", "fp32"]

_TERA = 1e12
_STAS = "github.com/stas00/ml-engineering@744d01e compute/accelerator and network"
_DGXC = "github.com/NVIDIA/dgxc-benchmarking README"


class Hardware(Section):
    """One kind of accelerator in the system it comes in. Rates are peaks without sparsity; G = 1e9, T = 1e12."""

    name: Name = Field(description="Name that specs and commands use, e.g. h100.")
    device_pattern: str = Field(
        description="Regular expression (case ignored) that matches the driver's device name as a whole."
    )
    bf16_tflops: PositiveFloat = Field(description="Dense bf16 matrix peak, TFLOP/s.")
    fp8_tflops: PositiveFloat | None = Field(None, description="Dense fp8 matrix peak, TFLOP/s; null without fp8.")
    fp4_tflops: PositiveFloat | None = Field(None, description="Dense fp4 matrix peak, TFLOP/s; null without fp4.")
    achievable_bf16_tflops: PositiveFloat | None = Field(
        None, description="Best measured bf16 matmul rate, TFLOP/s; null: taken as 80% of the peak."
    )
    achievable_fp8_tflops: PositiveFloat | None = Field(
        None, description="Best measured fp8 matmul rate, TFLOP/s; null: taken as 75% of the peak."
    )
    multiprocessors: PositiveInt = Field(132, description="Streaming multiprocessors (compute units).")
    usd_per_hour: PositiveFloat | None = Field(None, description="Price of one device for an hour, US dollars.")
    memory_gb: PositiveFloat = Field(description="Device memory, GB.")
    memory_tb_per_s: PositiveFloat = Field(description="Device memory bandwidth, TB/s.")
    link_gb_per_s: PositiveFloat | None = Field(
        None, description="Scale-up link (NVLink) of one device, one direction, GB/s; null without one."
    )
    link_devices: PositiveInt = Field(1, description="Devices that the scale-up link connects.")
    network_gbit_per_s: PositiveFloat | None = Field(
        None, description="Scale-out network of one device, one direction, Gbit/s; null when unknown."
    )
    source: str = Field(description="Where the figures come from.")


def _row(
    name: str,
    pattern: str,
    *,
    bf16: float,
    fp8: float | None,
    fp4: float | None = None,
    achievable: tuple[float, float | None] | None = None,
    units: int,
    memory: tuple[float, float],
    link: tuple[float, int] | None,
    network: float | None,
    source: str,
) -> Hardware:
    return Hardware(
        name=name,
        device_pattern=pattern,
        bf16_tflops=bf16,
        fp8_tflops=fp8,
        fp4_tflops=fp4,
        achievable_bf16_tflops=achievable[0] if achievable else None,
        achievable_fp8_tflops=achievable[1] if achievable else None,
        multiprocessors=units,
        memory_gb=memory[0],
        memory_tb_per_s=memory[1],
        link_gb_per_s=link[0] if link else None,
        link_devices=link[1] if link else 1,
        network_gbit_per_s=network,
        source=source,
    )


HARDWARE: tuple[Hardware, ...] = (
    _row(
        "a100", r"(NVIDIA )?A100-SXM4?-80GB", bf16=312.0, fp8=None, achievable=(271.2, None), units=108,
        memory=(80.0, 2.0), link=(300.0, 8),
        network=200.0, source=f"{_STAS}; NICs 8 x 200 Gbit/s: arXiv:2104.04473 section 5",
    ),
    _row(
        "a100-40gb", r"(NVIDIA )?A100-SXM4?-40GB", bf16=312.0, fp8=None, achievable=(271.2, None), units=108,
        memory=(40.0, 1.555), link=(300.0, 8),
        network=200.0, source=f"{_STAS}; bandwidth: NVIDIA A100 data sheet",
    ),
    _row(
        "a800", r"(NVIDIA )?A800-SXM4?-80GB", bf16=312.0, fp8=None, achievable=(271.2, None), units=108,
        memory=(80.0, 2.0), link=(200.0, 8),
        network=100.0, source="as a100 with NVLink cut to 400 GB/s both ways; 4 x 100 Gbit/s RoCE: InternEvo docs",
    ),
    _row(
        "h100", r"(NVIDIA )?H100 80GB HBM3", bf16=989.0, fp8=1979.0, achievable=(794.5, 1402.6), units=132,
        memory=(80.0, 3.35), link=(450.0, 8),
        network=400.0, source=f"{_STAS}; {_DGXC}; arXiv:2402.16819",
    ),
    _row(
        "h100-96gb", r"(NVIDIA )?H100 96GB HBM2e", bf16=989.0, fp8=1979.0, achievable=(671.0, 1185.0), units=132,
        memory=(96.0, 2.4), link=(450.0, 8), network=400.0,
        source="torchtitan benchmarks/llama3_h100_202412 (500 W, HBM2e); achievable: h100's times sqrt(500/700)",
    ),
    _row(
        "h100-pcie", r"(NVIDIA )?H100 PCIe", bf16=756.0, fp8=1513.0, units=114,
        memory=(80.0, 2.0), link=None,
        network=None, source=_STAS,
    ),
    _row(
        "h200", r"(NVIDIA )?H200", bf16=989.0, fp8=1979.0, achievable=(794.5, 1453.4), units=132,
        memory=(141.0, 4.8), link=(450.0, 8),
        network=400.0, source=f"{_STAS}; network: torchtitan's H200 report",
    ),
    _row(
        "b200", r"(NVIDIA )?B200", bf16=2250.0, fp8=4500.0, fp4=9000.0, achievable=(1745.0, 3432.5), units=148,
        memory=(180.0, 8.0), link=(900.0, 8),
        network=400.0, source=f"{_STAS}; {_DGXC}",
    ),
    _row(
        "b300", r"(NVIDIA )?B300( SXM6( AC)?)?", bf16=2250.0, fp8=4500.0, fp4=13500.0,
        achievable=(1769.0, 3353.3), units=148,
        memory=(288.0, 8.0), link=(900.0, 8),
        network=800.0, source=f"{_STAS}; {_DGXC} (270 GB usable)",
    ),
    _row(
        "gb200", r"(NVIDIA )?GB200", bf16=2450.0, fp8=4900.0, fp4=9800.0, achievable=(1822.0, 3615.6), units=152,
        memory=(186.0, 8.0), link=(900.0, 72),
        network=400.0, source=f"{_DGXC}; network: {_STAS} (4 ConnectX-7 a tray)",
    ),
    _row(
        "gb300", r"(NVIDIA )?GB300", bf16=2450.0, fp8=4900.0, fp4=14700.0, achievable=(1968.0, 3905.0), units=152,
        memory=(279.0, 8.0), link=(900.0, 72),
        network=800.0,
        source=f"{_DGXC}; network: NVIDIA NVL72 reference architecture (4 ConnectX-8 a tray); "
        "achievable: gb200's times sqrt(1400 W/1200 W)",
    ),
)  # fmt: skip
"""The accelerators that are known without a file of the user's."""


def find_hardware(device_name: str, *, table: tuple[Hardware, ...] = HARDWARE) -> Hardware | None:
    """Return the row for a name of the table or a driver's device name (``torch.cuda.get_device_name``)."""
    wanted = device_name.strip()
    for row in table:
        if wanted.lower() == row.name or re.fullmatch(row.device_pattern, wanted, re.IGNORECASE):
            return row
    return None


_LARGEST_HOST = 16
"""More devices on one link are a rack's, and jobs take parts of racks."""


def scale_up_domain(hardware: Hardware, *, devices: int, devices_per_node: int) -> int:
    """Return the devices of a job that a fast link connects: a host's, or those of a rack that divide the job evenly.

    Args:
        hardware: The accelerator.
        devices: Devices of the job.
        devices_per_node: Devices of a host, for accelerators without a link of their own.
    """
    linked = hardware.link_devices
    size = min(devices, linked if linked > 1 else devices_per_node)
    if linked > _LARGEST_HOST:
        size = max(count for count in range(1, size + 1) if devices % count == 0)
    return size


def device_bytes(memory_gb: float) -> float:
    """Return the bytes that a device named for so many GB gives to programs: GiB in truth, less 1% for its driver."""
    return 0.99 * memory_gb * (1 << 30)


def peak_flops(device_name: str, dtype: Dtype) -> float | None:
    """Return a device's dense matrix peak in FLOP/s, or None where it is not known.

    fp32 has no entry: its peak depends on whether TF32 is allowed.

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3", "bf16")
        989000000000000.0
    """
    row = find_hardware(device_name)
    if row is None:
        return None
    tflops = {"bf16": row.bf16_tflops, "fp8": row.fp8_tflops, "fp32": None}[dtype]
    return None if tflops is None else tflops * _TERA


def parse_hardware(text: str, *, file: str) -> tuple[Hardware, ...]:
    """Read a user's own hardware: YAML, a list of mappings with the fields of :class:`Hardware`.

    Args:
        text: Contents of the file.
        file: Its name, for messages.

    Raises:
        SpecError: the text is no YAML list of hardware; every fault at once.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise SpecError(
            [
                Problem(
                    path=(),
                    message=f"not YAML: {getattr(error, 'problem', None) or error}",
                    hint="write a list of hardware, one mapping each",
                    file=file,
                    line=mark.line + 1 if mark else None,
                    column=mark.column + 1 if mark else None,
                )
            ]
        ) from None
    try:
        rows = TypeAdapter(list[Hardware]).validate_python(data)
    except ValidationError as error:
        raise SpecError(
            [
                Problem(
                    path=tuple(item["loc"]),
                    message=f"{item['msg']} (got {item['input']!r:.80})",
                    hint=_hint(item["loc"], kind=item["type"]),
                    file=file,
                )
                for item in error.errors()
            ]
        ) from None
    problems = [*_pattern_problems(rows, file=file), *_name_problems(rows, file=file)]
    if problems:
        raise SpecError(problems)
    return tuple(rows)


def _hint(loc: tuple[int | str, ...], *, kind: str) -> str:
    if not loc:
        return "write a list of hardware, one mapping each"
    if kind == "extra_forbidden":
        return f"known fields: {', '.join(Hardware.model_fields)}"
    field = Hardware.model_fields.get(str(loc[-1]))
    return (field.description or "") if field else ""


def _name_problems(rows: list[Hardware], *, file: str) -> list[Problem]:
    names = [row.name for row in rows]
    return [
        Problem(
            path=(index, "name"),
            message=f"{name!r} is the name of [{names.index(name)}] already",
            hint="give each its own name",
            file=file,
        )
        for index, name in enumerate(names)
        if name in names[:index]
    ]


def _pattern_problems(rows: list[Hardware], *, file: str) -> list[Problem]:
    problems = []
    for index, row in enumerate(rows):
        try:
            re.compile(row.device_pattern)
        except re.error as error:
            problems.append(
                Problem(
                    path=(index, "device_pattern"),
                    message=f"device_pattern={row.device_pattern!r} is no regular expression: {error}",
                    hint="escape special characters with a backslash",
                    file=file,
                )
            )
    return problems
