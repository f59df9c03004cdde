"""SGLang as a CPU worker imports it, for every test module here, in whatever order they are collected."""

from __future__ import annotations

import warnings

from sglang_ext.cpu import fallbacks

with warnings.catch_warnings():
    # SGLang and what it imports warn of many things that are not ours to mend.
    warnings.simplefilter("ignore")
    fallbacks.install()
    import sglang_ext.compat  # noqa: F401 - imports of SGLang's that warn come first, here
