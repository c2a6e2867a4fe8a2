from __future__ import annotations

import pytest

from llama_scale.errors import SpecError
from llama_scale.plan.hardware import HARDWARE, find_hardware, parse_hardware, peak_flops, scale_up_domain


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA A800-SXM4-80GB", "fp8", None),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp8", 1979e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA B200", "bf16", 2250e12),
        ("NVIDIA B300 SXM6 AC", "bf16", 2250e12),
        ("NVIDIA GB200", "fp8", 4900e12),
        ("h100", "bf16", 989e12),
        ("H100", "fp32", None),
        ("NVIDIA H100 NVL", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
        ("cpu", "bf16", None),
        ("", "bf16", None),
    ],
)
def test_peak_is_that_of_the_device_or_unknown(device: str, dtype: str, expected: float | None) -> None:
    assert peak_flops(device, dtype) == expected  # type: ignore[arg-type]


def test_table_rows_are_distinct_and_have_sources() -> None:
    assert len({row.name for row in HARDWARE}) == len(HARDWARE)
    for row in HARDWARE:
        assert row.source
        assert find_hardware(row.name) is row


_OWN = """
- name: mine
  device_pattern: "My Chip .*"
  bf16_tflops: 100
  memory_gb: 64
  memory_tb_per_s: 1.5
  source: data sheet
"""


def test_own_hardware_is_read_from_yaml() -> None:
    (row,) = parse_hardware(_OWN, file="hw.yaml")

    assert find_hardware("my chip 3", table=(row,)) is row
    assert (row.bf16_tflops, row.link_devices, row.fp8_tflops) == (100, 1, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- [", r"hw\.yaml:\d+:\d+: not YAML"),
        ("name: x", r"hw\.yaml: Input should be a valid list .*write a list of hardware"),
        ("- {}", r"\[0\]\.name: Field required"),
        (_OWN.replace("memory_gb", "memory_gib"), r"\[0\]\.memory_gib: Extra inputs .*; known fields: name, "),
        (_OWN.replace("100", "-1"), r"\[0\]\.bf16_tflops: .*greater than 0 \(got -1\); Dense bf16 matrix peak"),
        (_OWN.replace("My Chip .*", "("), r"\[0\]\.device_pattern: device_pattern='\(' is no regular expression"),
        (_OWN + _OWN, r"\[1\]\.name: 'mine' is the name of \[0\] already; give each its own name"),
    ],
)
def test_bad_hardware_files_are_refused_with_place_and_rule(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_hardware(text, file="hw.yaml")


@pytest.mark.parametrize(
    ("name", "devices", "domain"),
    [("h100", 64, 8), ("h100", 4, 4), ("gb200", 64, 64), ("gb200", 128, 64), ("h100-pcie", 16, 2)],
)
def test_the_scale_up_domain_is_a_host_or_part_of_a_rack(name: str, devices: int, domain: int) -> None:
    row = find_hardware(name)
    assert row is not None
    assert scale_up_domain(row, devices=devices, devices_per_node=2) == domain
