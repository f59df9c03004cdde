"""What NVIDIA publishes of its cards: the rate of multiplications in half precision, and the memory's bandwidth.

By the names that NVML tells. Rates are those of tensor cores in bfloat16 with float32 sums, without sparsity (data
sheets that print the rate with sparsity are halved). Sources:

* B200: DGX B200 data sheet. H200, H200 NVL: H200 data sheet. H100 (SXM5), PCIe and NVL: H100 data sheet and Hopper
  white paper.
* A100: A100 data sheet and Ampere white paper (312 TFLOPS; 1,555, 1,935 and 2,039 GB/s by variant). A40, A10: their
  data sheets.
* L40S, L40, L4: their data sheets. RTX 6000 Ada, RTX 4090: Ada white papers. RTX A6000, RTX 3090: GA102 white paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Spec(NamedTuple):
    """Of one card."""

    flops: float
    """Multiplications and additions a second, each counted."""
    bytes_per_s: float
    """Of its memory."""


SPECS: Mapping[str, Spec] = MappingProxyType(
    {
        "NVIDIA B200": Spec(2250e12, 8.0e12),
        "NVIDIA H200": Spec(989e12, 4.8e12),
        "NVIDIA H200 NVL": Spec(835e12, 4.8e12),
        "NVIDIA H100 80GB HBM3": Spec(989e12, 3.35e12),
        "NVIDIA H100 NVL": Spec(835e12, 3.9e12),
        "NVIDIA H100 PCIe": Spec(756e12, 2.0e12),
        "NVIDIA A100-SXM4-80GB": Spec(312e12, 2.039e12),
        "NVIDIA A100 80GB PCIe": Spec(312e12, 1.935e12),
        "NVIDIA A100-SXM4-40GB": Spec(312e12, 1.555e12),
        "NVIDIA A100-PCIE-40GB": Spec(312e12, 1.555e12),
        "NVIDIA A40": Spec(149.7e12, 696e9),
        "NVIDIA A10": Spec(125e12, 600e9),
        "NVIDIA L40S": Spec(362e12, 864e9),
        "NVIDIA L40": Spec(181e12, 864e9),
        "NVIDIA L4": Spec(121e12, 300e9),
        "NVIDIA RTX 6000 Ada Generation": Spec(364.2e12, 960e9),
        "NVIDIA RTX A6000": Spec(154.8e12, 768e9),
        "NVIDIA GeForce RTX 4090": Spec(165.2e12, 1008e9),
        "NVIDIA GeForce RTX 3090": Spec(71e12, 936e9),
    }
)
