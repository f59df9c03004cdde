"""Spans and metrics as the SDK has them, from runs over HTTP. Without the SDK: that this is said."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from launch.cluster import DRAIN_GRACE_S
from shell_router.app import build_app, open_app
from shell_router.config import ConfigError, ModelConfig, RouterConfig
from shell_router.telemetry import exporter as exporting
from shell_router.telemetry.exporter import Exporter, GivenIds, missing_packages, open_exporter
from shell_router.telemetry.measurements import INSTRUMENTS
from shell_router.trace_context import chat_span, own_trace_id, run_span
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import CHAT, CHAT_PATH, Client, limited_service, serving
from tests.shell_router.test_openai_schema import record_of
from tests.shell_router.test_trace_context import SENT, SPAN, TRACE

SDK = "opentelemetry.sdk"
needs_sdk = pytest.mark.skipif(
    SDK in missing_packages(), reason="the package opentelemetry-sdk is not installed (extra `otel`)"
)
needs_otlp = pytest.mark.skipif(
    bool(missing_packages()), reason="the package opentelemetry-exporter-otlp is not installed (extra `otel`)"
)
CONFIG = RouterConfig(models=(), trees=(), otlp_endpoint="127.0.0.1:4317")


class Collected:
    """What an exporter has exported, in memory."""

    def __init__(self, sampler: Any = None) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider(sampler=sampler, id_generator=GivenIds(), shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.exporter = Exporter(tracers, meters, {"m": "sglang"})

    @property
    def spans(self) -> Mapping[str, Any]:
        """By their ids, in hexadecimal."""
        return {f"{span.context.span_id:016x}": span for span in self._spans.get_finished_spans()}

    def points(self) -> dict[str, list[Any]]:
        """The data points of each metric."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@asynccontextmanager
async def traced(collected: Collected, engine: FakeEngine | None = None) -> AsyncIterator[Client]:
    app = build_app(limited_service(engine or FakeEngine()), body_bytes=10_000, exporter=collected.exporter)
    async with serving(app) as client:
        yield client


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[Any], list[Any]]]:
    """A collector of OTLP over gRPC: its address, and the requests for traces and for metrics that it got."""
    import grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    spans: list[Any] = []
    metrics: list[Any] = []

    class Traces:
        def Export(self, request: Any, _: Any) -> Any:
            spans.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    class Metrics:
        def Export(self, request: Any, _: Any) -> Any:
            metrics.append(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", spans, metrics
    finally:
        server.stop(None).wait()


def config_for(endpoint: str) -> RouterConfig:
    model = ModelConfig(name="m", tokenizer="-", router_url="-", context_length=64)
    return RouterConfig(models=(model,), trees=(), otlp_endpoint=endpoint)


@needs_sdk
async def test_a_run_is_one_trace() -> None:
    collected = Collected()
    async with traced(collected) as client:
        _, chat, _ = await client.chat()
        record = await record_of(client, chat["id"])
    spans = collected.spans
    assert record.trace is not None
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {own_trace_id(record.id)}
    roots = [span for span in spans.values() if span.parent is None]
    assert [span.name for span in roots] == ["invoke_workflow t"]
    for span in spans.values():
        assert span.parent is None or f"{span.parent.span_id:016x}" in spans
    root = spans[run_span(record.id)]
    assert record.duration_s is not None
    assert root.start_time == pytest.approx(record.created * 1e9, abs=1e3)
    assert root.end_time - root.start_time == pytest.approx(record.duration_s * 1e9, abs=1e3)
    final = spans[chat_span(record.id, "root")]
    assert final.kind.name == "CLIENT"
    assert final.attributes["gen_ai.usage.output_tokens"] == record.root.output_tokens
    assert final.attributes["gen_ai.response.finish_reasons"] == (record.root.finish_reason,)
    assert [event.name for event in final.events] == ["graft.first_token"]
    assert all(span.status.status_code.name == "UNSET" for span in spans.values())


@needs_sdk
async def test_the_trace_of_a_client_is_gone_on_with() -> None:
    collected = Collected()
    headers = {"traceparent": SENT, "tracestate": "a=1"}
    async with traced(collected) as client:
        _, chat, _ = await client.call("POST", CHAT_PATH, CHAT, headers)
    root = collected.spans[run_span(chat["id"])]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == SPAN
    assert root.parent.is_remote
    assert root.context.trace_state.to_header() == "a=1"


@needs_sdk
async def test_a_client_that_keeps_no_trace_gets_none() -> None:
    collected = Collected()
    async with traced(collected) as client:
        _, chat, _ = await client.call("POST", CHAT_PATH, CHAT, {"traceparent": SENT[:-1] + "0"})
        record = await record_of(client, chat["id"])
    assert not collected.spans
    assert record.trace is not None
    assert not record.trace.sampled
    assert collected.points()["gen_ai.workflow.duration"], "metrics are of all runs"


@needs_sdk
async def test_a_share_of_the_runs_can_be_kept() -> None:
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    collected = Collected(ParentBased(TraceIdRatioBased(0.5)))
    async with traced(collected) as client:
        runs = [(await client.chat())[1]["id"] for _ in range(8)]
        kept = {run for run in runs if (trace := (await record_of(client, run)).trace) is not None and trace.sampled}
    roots = {str(span.attributes["graft.run.id"]) for span in collected.spans.values() if span.parent is None}
    assert roots == kept
    expected = {run for run in runs if int(own_trace_id(run)[16:], 16) < 2**63}
    assert kept == expected


@needs_sdk
async def test_what_fails_is_an_error_of_its_spans() -> None:
    def break_p2(request: GenerateRequest) -> int | None:
        return 2

    collected = Collected()
    async with traced(collected, FakeEngine(fail_at=break_p2)) as client:
        status, _, _ = await client.chat()
    assert status == 502
    (root,) = [span for span in collected.spans.values() if span.parent is None]
    assert root.status.status_code.name == "ERROR"
    assert root.attributes["error.type"] == "failed"


@needs_sdk
async def test_metrics_have_the_names_and_buckets_of_the_conventions() -> None:
    collected = Collected()
    async with traced(collected) as client:
        _, chat, _ = await client.chat()
        record = await record_of(client, chat["id"])
    points = collected.points()
    (workflow,) = points["gen_ai.workflow.duration"]
    assert workflow.count == 1
    assert workflow.sum == record.duration_s
    assert tuple(workflow.explicit_bounds) == (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
    assert sum(point.count for point in points["gen_ai.invoke_agent.duration"]) == len(record.agents)
    (first,) = points["gen_ai.server.time_to_first_token"]
    assert first.sum >= (record.ttft_s or 0.0)
    assert dict(first.attributes)["gen_ai.request.model"] == "t"


@needs_sdk
async def test_telling_of_a_run_takes_little() -> None:
    """It is done on the event loop when a run has ended."""
    collected = Collected()
    async with traced(collected) as client:
        _, chat, _ = await client.chat()
        record = await record_of(client, chat["id"])
    times = []
    for _ in range(20):
        began = time.perf_counter()
        collected.exporter.observe(record, 0.0)
        times.append(time.perf_counter() - began)
    print(f"{len(collected.spans)} spans in {1e3 * min(times):.2f} ms")
    assert min(times) < 0.05


@needs_otlp
async def test_a_collector_gets_all_when_the_router_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the wire, as the messages of OTLP."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=here")
    async with collector() as (endpoint, spans, metrics), open_exporter(config_for(endpoint)) as exporter:
        app = build_app(limited_service(FakeEngine()), body_bytes=10_000, exporter=exporter)
        async with serving(app) as client:
            _, chat, _ = await client.chat()
            record = await record_of(client, chat["id"])
    (resource,) = {
        tuple(sorted((each.key, each.value.string_value) for each in request.resource_spans[0].resource.attributes))
        for request in spans
    }
    assert {("service.name", "graft"), ("deployment.environment.name", "here")} <= set(resource)
    told = [span for request in spans for of in request.resource_spans for in_ in of.scope_spans for span in in_.spans]
    assert {span.trace_id.hex() for span in told} == {own_trace_id(record.id)}
    assert {f"chat {agent.model}" for agent in record.agents} <= {span.name for span in told}
    names = {
        metric.name
        for request in metrics
        for of in request.resource_metrics
        for in_ in of.scope_metrics
        for metric in in_.metrics
    }
    assert names == {each.name for each in INSTRUMENTS}


@needs_otlp
async def test_a_collector_that_takes_traces_alone_is_sent_no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    async with collector() as (endpoint, spans, metrics), open_exporter(config_for(endpoint)) as exporter:
        app = build_app(limited_service(FakeEngine()), body_bytes=10_000, exporter=exporter)
        async with serving(app) as client:
            await client.chat()
    assert spans
    assert not metrics


@needs_otlp
async def test_a_collector_that_is_not_there_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    async with open_exporter(config_for(f"127.0.0.1:{port}")) as exporter:
        app = build_app(limited_service(FakeEngine()), body_bytes=10_000, exporter=exporter)
        async with serving(app) as client:
            assert (await client.chat())[0] == 200
        began = time.monotonic()
    assert time.monotonic() - began < DRAIN_GRACE_S, "else the launcher kills it"


async def test_nothing_is_exported_where_nobody_is_named() -> None:
    async with open_exporter(RouterConfig(models=(), trees=())) as exporter:
        assert exporter is None


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc"])
async def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(exporting, "missing_packages", lambda: (missing,))
    with pytest.raises(ConfigError, match=rf"^otlp_endpoint: the package {missing} .*graft-moa\[otel\]"):
        async with open_app(CONFIG):
            pass


def test_a_router_that_does_not_export_does_not_load_it() -> None:
    code = "import sys, shell_router.__main__; print(any(name.startswith('opentelemetry') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
