"""Stand-ins for binary packages that a CPU machine does not have, so that SGLang's modules import.

`sgl_kernel` exists for CUDA only. `torchvision` has no wheel for a CPU build of torch on PyPI, and SGLang imports
it for models that see. Neither stand-in can shadow an installed package: the finder is asked after all others.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PACKAGES = ("sgl_kernel", "torchvision")


def install() -> None:
    """Make `PACKAGES` importable in this process. Idempotent; imports transformers."""
    if any(isinstance(finder, _StandInFinder) for finder in sys.meta_path):
        return
    # transformers looks for torchvision once and remembers the answer: it must not take the stand-in for it.
    from transformers.utils.import_utils import is_torchvision_available

    is_torchvision_available()
    sys.meta_path.append(_StandInFinder())


class _Missing:
    """Any name of a stand-in package: may be imported, looked into and passed on, but not called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> _Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self._name}.{name}")

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError(f"{self._name} is not to be had on the CPU engine: its package is not installed")


class _StandInModule(ModuleType):
    """A stand-in package or submodule, every name of which is a `_Missing`."""

    def __getattr__(self, name: str) -> _Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.__name__}.{name}")


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `PACKAGES` and their submodules when nothing else on the path does."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
