"""Whether SGLang and sglang-router take the flags of a configuration: their own parsers are asked, in a process that
imports them. It takes seconds, and only where there are flags."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping

import msgspec

from launch.config import ClusterConfig
from sglang_ext.flags import PARSERS, Flags, Reading
from shell_router.core.review import Remark

TIMEOUT_S = 120.0
_WORKER_FIELDS: Mapping[str, str | None] = {
    "api_key": None,
    "context_length": "context_length",
    "device": "device",
    "disaggregation_bootstrap_port": "bootstrap_port",
    "disaggregation_mode": None,
    "host": "host",
    "model_path": "path",
    "page_size": "page_size",
    "port": "port",
    "served_model_name": "name",
    "skip_tokenizer_init": None,
}
"""What others must know of a worker, so that no flag may change it behind their back, and the field that says it."""
_SAID_TWICE: Mapping[str, str] = {
    "disaggregation_transfer_backend": "transfer_backend",
    "dtype": "dtype",
    "max_total_tokens": "max_total_tokens",
    "mem_fraction_static": "mem_fraction_static",
}
"""What a flag may change, unseen by what else reads the field."""
_ROUTER_FIELDS: Mapping[str, str | None] = {
    **dict.fromkeys(("api_key", "decode", "pd_disaggregation", "prefill", "worker_urls"), None),
    "host": "host",
    "port": "port",
}


def review_flags(config: ClusterConfig, host: str | None) -> Iterator[Remark]:
    """Remarks on the flags of `config` (its part on `host`). Nothing where the programs are not installed: that is a
    problem of its own."""
    asked = tuple((path, one) for path, one in _flags(config, host) if importlib.util.find_spec(one.program))
    if not asked:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-m", PARSERS],
            input=msgspec.json.encode([one for _, one in asked]),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        readings = msgspec.json.decode(done.stdout.splitlines()[-1], type=list[Reading])
    except (subprocess.SubprocessError, IndexError, msgspec.DecodeError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else b""
        told = said.decode(errors="replace").strip().splitlines()
        yield Remark(f"flags were not tried, since their parsers failed: {told[-1] if told else error}")
        return
    for (path, one), reading in zip(asked, readings, strict=True):
        if reading.error is not None:
            yield Remark(f"{path}: {_NAMES[one.program]} does not take it: {reading.error}", error=True)
        fields = _WORKER_FIELDS if one.program == "sglang" else _ROUTER_FIELDS
        for field in reading.fields:
            if field in fields:
                instead = f"; say it with `{fields[field]}`" if fields[field] else ""
                yield Remark(f"{path}: `{field}` is not for flags: others rely on it{instead}", error=True)
            elif field in _SAID_TWICE and one.program == "sglang":
                yield Remark(f"{path}: `{field}` is better said with the field `{_SAID_TWICE[field]}`")


_NAMES = {"sglang": "SGLang", "sglang_router": "sglang-router"}


def _flags(config: ClusterConfig, host: str | None) -> Iterator[tuple[str, Flags]]:
    """JSON path and content of all flags."""
    served = {worker.model.name for worker in config.workers(host)}
    for m, model in enumerate(config.models):
        if model.flags and model.name in served:
            yield f"$.models[{m}].flags", Flags(program="sglang", flags=model.flags)
        if model.router.flags and model.openai is None and host in (None, model.router.host):
            yield f"$.models[{m}].router.flags", Flags(program="sglang_router", flags=model.router.flags)
    for worker in config.workers(host):
        if worker.config.flags:
            yield f"{worker.path}.flags", Flags(program="sglang", flags=worker.config.flags)
