"""What the CPU engine gets from us: stand-ins that shadow nothing, host memory for NIXL, a lean extend attention."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_ext.cpu import attention, nixl_memory

with warnings.catch_warnings():
    # SGLang and what it imports warn of many things that are not ours to mend.
    warnings.simplefilter("ignore")
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend


def python(code: str, *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    lines = ["import sys", f"sys.path.insert(0, {str(path)!r})" if path else "", code]
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


def test_stand_ins_import_and_refuse_to_run() -> None:
    done = python(
        "from sglang_ext.cpu import fallbacks; fallbacks.install(); fallbacks.install()\n"
        "from sgl_kernel import silu_and_mul\n"
        "from sgl_kernel.scalar_type import scalar_types; scalar_types.uint4b8\n"
        "import torchvision.transforms.functional\n"
        "from transformers.utils import is_torchvision_available; assert not is_torchvision_available()\n"
        "silu_and_mul(1)"
    )
    assert "NotImplementedError: sgl_kernel.silu_and_mul is not to be had on the CPU engine" in done.stderr


def test_an_installed_package_is_never_shadowed(tmp_path: Path) -> None:
    (tmp_path / "sgl_kernel").mkdir()
    (tmp_path / "sgl_kernel" / "__init__.py").write_text("silu_and_mul = 'the real one'")
    done = python(
        "from sglang_ext.cpu import fallbacks; fallbacks.install()\nfrom sgl_kernel import silu_and_mul\n"
        "print(silu_and_mul)\nimport sgl_kernel.nothing",
        path=tmp_path,
    )
    assert done.stdout.strip() == "the real one"


@pytest.mark.parametrize("flags", [[], ["--device", "cuda"], ["--device", "cpu", "--device=cuda"]])
def test_the_cpu_entry_refuses_other_devices(flags: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sglang_ext.cpu.serve", *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "needs `--device cpu`" in done.stderr


def test_kv_buffers_are_declared_as_host_memory() -> None:
    arguments = SimpleNamespace(kv_data_ptrs=[1, 2, 3])
    nixl_memory.declare_host_memory(None, arguments)
    assert arguments.kv_data_mem_kinds == ["DRAM", "DRAM", "DRAM"]


def _call(dtype: torch.dtype, shapes: list[tuple[int, int]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an extend of several sequences; `shapes` has (cached prefix, new tokens) of each."""
    generator = torch.Generator().manual_seed(1)
    heads, kv_heads, size, slots = 6, 2, 16, 600
    lengths = torch.tensor([prefix + new for prefix, new in shapes])
    # Slots of one sequence lie scattered in the pool, and no two sequences share one.
    order = torch.randperm(slots, generator=generator)
    rows = torch.zeros(len(shapes) + 1, int(lengths.max()), dtype=torch.int64)
    taken = 0
    for row, length in enumerate(lengths.tolist()):
        rows[row + 1, :length] = order[taken : taken + length]
        taken += length
    new_tokens = sum(new for _, new in shapes)
    query = torch.randn(new_tokens, heads, size, generator=generator).to(dtype)
    caches = [torch.randn(slots, kv_heads, size, generator=generator).to(dtype) for _ in range(2)]
    arguments = (
        query, torch.empty_like(query), *caches, rows, torch.arange(1, len(shapes) + 1), lengths,
        torch.tensor([prefix for prefix, _ in shapes]), torch.tensor([new for _, new in shapes]), None,
    )  # fmt: skip
    return arguments, {"scaling": size**-0.5, "enable_gqa": True, "causal": True, "is_cross_attn": False}


SHAPES = [[(0, 7)], [(33, 1)], [(100, 16)], [(0, 5), (64, 16), (17, 3), (0, 1)]]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_extend_equals_the_stock_one(dtype: torch.dtype, tolerance: float, shapes: list[tuple[int, int]]) -> None:
    stock = TorchNativeAttnBackend._run_sdpa_forward_extend
    arguments, options = _call(dtype, shapes)
    expected = stock(None, *arguments, **options).clone()
    arguments[1].fill_(float("nan"))

    def not_called(*_: Any, **__: Any) -> Any:
        raise AssertionError("the stock extend was used")

    got = attention.extend(not_called, None, *arguments, **options, sliding_window_size=None)
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "change",
    [{"causal": False}, {"is_cross_attn": True}, {"sliding_window_size": 8}, {"something_new": 1}],
)
def test_what_is_not_plain_causal_goes_to_the_stock_extend(change: dict[str, Any]) -> None:
    arguments, options = _call(torch.float32, [(4, 4)])
    seen = []

    def stock(*given: Any, **named: Any) -> str:
        seen.append((given, named))
        return "stock"

    assert attention.extend(stock, "backend", *arguments, **options | change) == "stock"
    ((given, named),) = seen
    assert given == ("backend", *arguments)
    assert named == options | change


def test_an_encoder_goes_to_the_stock_extend() -> None:
    (*arguments, _), options = _call(torch.float32, [(4, 4)])
    options["encoder_lens"] = torch.tensor([1])
    assert attention.extend(lambda *_, **__: "stock", None, *arguments, **options) == "stock"


def _decode_call(dtype: torch.dtype, lengths: list[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a decode step of sequences with so many tokens each."""
    arguments, options = _call(dtype, [(length - 1, 1) for length in lengths])
    return arguments[:7], options | {"causal": False}


@pytest.mark.parametrize("lengths", [[1], [40], [100, 1, 16, 300]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_decode_equals_the_stock_one(dtype: torch.dtype, tolerance: float, lengths: list[int]) -> None:
    arguments, options = _decode_call(dtype, lengths)
    expected = TorchNativeAttnBackend._run_sdpa_forward_decode(None, *arguments, **options).clone()
    arguments[1].fill_(float("nan"))

    def not_called(*_: Any, **__: Any) -> Any:
        raise AssertionError("the stock decode was used")

    got = attention.decode(not_called, None, *arguments, **options, sliding_window_size=None)
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "change", [{"causal": True}, {"is_cross_attn": True}, {"sliding_window_size": 8}, {"something_new": 1}]
)
def test_what_is_not_plain_goes_to_the_stock_decode(change: dict[str, Any]) -> None:
    arguments, options = _decode_call(torch.float32, [4])
    assert attention.decode(lambda *_, **__: "stock", None, *arguments, **options | change) == "stock"
    encoder = torch.tensor([1])
    assert attention.decode(lambda *_, **__: "stock", None, *arguments, encoder, **options) == "stock"
