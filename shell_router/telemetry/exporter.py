"""Runs that have ended, to whoever takes OpenTelemetry's traces and metrics (OTLP over gRPC).

The one place that knows the SDK, which is imported when an exporter is made and not before. Sampling, batching, limits
and resource attributes are the SDK's own, with its variables (`OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, ...).
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shell_router.config import ConfigError, RouterConfig
from shell_router.record import RunRecord
from shell_router.telemetry.description import SpanDescription, describe
from shell_router.telemetry.measurements import INSTRUMENTS, measurements_of
from shell_router.trace_context import RunTrace, TraceContext, own_trace_id

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanContext

logger = logging.getLogger(__name__)

PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")
"""What an exporter imports."""
INSTALL = "`pip install 'graft-moa[otel]'` installs it"
_SERVICE = "graft"
"""`service.name` where the environment names none."""
_SCOPE = "graft.shell_router"
_NANOSECONDS = 1_000_000_000
_LAST_S = 2.0
"""For a collector to take what is left when the router ends: who ends it does not wait long."""


def missing_packages() -> tuple[str, ...]:
    """Those of `PACKAGES` that are not installed."""
    return tuple(name for name in PACKAGES if not _installed(name))


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # What it is a part of is not there.
        return False


@asynccontextmanager
async def open_exporter(config: RouterConfig) -> AsyncIterator[Exporter | None]:
    """An exporter to `config.otlp_endpoint`; at the end it sends what it still has. None where nothing is exported.

    Raises `ConfigError` when the SDK is not installed.
    """
    if config.otlp_endpoint is None:
        yield None
        return
    if missing := missing_packages():
        raise ConfigError(f"otlp_endpoint: the package {missing[0]} is not installed; {INSTALL}")
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    endpoint = f"http://{config.otlp_endpoint}"
    resource = _resource()
    # Both are ended here, in order, and not when the interpreter ends.
    tracers = TracerProvider(resource=resource, id_generator=GivenIds(), shutdown_on_exit=False)
    spans, metrics = OTLPSpanExporter(endpoint=endpoint, insecure=True), None
    tracers.add_span_processor(BatchSpanProcessor(spans))
    readers = []
    # For collectors that take traces alone; the variable is OpenTelemetry's own.
    if os.environ.get("OTEL_METRICS_EXPORTER") != "none":
        metrics = OTLPMetricExporter(endpoint=endpoint, insecure=True)
        readers.append(PeriodicExportingMetricReader(metrics))
    meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    providers = {model.name: model.backend for model in config.models}
    logger.info("runs are told to %s (OTLP)", config.otlp_endpoint)
    try:
        yield Exporter(tracers, meters, providers)
    finally:
        ending = asyncio.gather(asyncio.to_thread(tracers.shutdown), asyncio.to_thread(meters.shutdown))
        ended, _ = await asyncio.wait([ending], timeout=_LAST_S)
        if not ended:
            logger.warning("%s did not take all there was to tell", config.otlp_endpoint)
            for each in (spans, metrics):
                if each is not None:
                    # It gives up what is under way, for which the others wait.
                    each.shutdown()
            await ending


class Exporter:
    """Makes spans and measurements of runs that have ended."""

    def __init__(self, tracers: TracerProvider, meters: MeterProvider, providers: Mapping[str, str]) -> None:
        """The ids of `tracers` are `GivenIds`. `providers` has for each model what serves it."""
        ids = tracers.id_generator
        assert isinstance(ids, GivenIds)
        self._ids = ids
        self._sampler = tracers.sampler
        self._tracer = tracers.get_tracer(_SCOPE)
        self._providers = providers
        meter = meters.get_meter(_SCOPE)
        self._histograms = {
            each.name: meter.create_histogram(
                each.name, each.unit, each.meaning, explicit_bucket_boundaries_advisory=each.buckets
            )
            for each in INSTRUMENTS
        }

    def begin(self, run_id: str, client: TraceContext | None) -> RunTrace:
        """The trace of a run that begins: that of its client, if there is one. Whether it is kept is decided now, for
        the workers are told."""
        from opentelemetry.trace import SpanKind

        trace_id = own_trace_id(run_id) if client is None else client.trace_id
        parent = None if client is None else _context(client, remote=True)
        result = self._sampler.should_sample(parent, int(trace_id, 16), "invoke_workflow", SpanKind.INTERNAL, {})
        return RunTrace(
            trace_id=trace_id,
            parent_id=None if client is None else client.span_id,
            sampled=result.decision.is_sampled(),
            state="" if client is None else client.state,
        )

    def observe(self, record: RunRecord, queued_s: float) -> None:
        """Take up a run that has ended, after `queued_s` seconds in the queue."""
        for instrument, value, attributes in measurements_of(record, self._providers, queued_s):
            self._histograms[instrument.name].record(value, dict(attributes))
        if record.trace is not None and record.trace.sampled:
            for span in describe(record, self._providers, queued_s):
                self._make(span, record.trace)

    def _make(self, span: SpanDescription, trace: RunTrace) -> None:
        from opentelemetry.trace import Link, SpanKind, StatusCode

        self._ids.trace_id, self._ids.span_id = int(trace.trace_id, 16), int(span.id, 16)
        parent = None if span.parent is None else trace.at(span.parent)
        links = [Link(_span_context(trace.at(each))) for each in span.links]
        made = self._tracer.start_span(
            span.name,
            context=_context(parent, remote=span.parent == trace.parent_id),
            kind=SpanKind.CLIENT if span.kind == "client" else SpanKind.INTERNAL,
            attributes=dict(span.attributes),
            links=links,
            start_time=_nanoseconds(span.start),
        )
        for event in span.events:
            made.add_event(event.name, timestamp=_nanoseconds(event.at))
        if span.error is not None:
            made.set_status(StatusCode.ERROR, span.error)
        made.end(_nanoseconds(span.end))


class GivenIds:
    """An id generator, as the SDK takes one, of ids that are set before each span: workers have been told of them."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def is_trace_id_random(self) -> bool:
        return True


def _resource() -> Resource:
    """What spans and metrics are of. What the environment says of it holds (`OTEL_SERVICE_NAME`)."""
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource

    return Resource.create({SERVICE_NAME: _SERVICE}).merge(OTELResourceDetector().detect())


def _context(context: TraceContext | None, *, remote: bool = False) -> Context:
    """What is a part of `context`; of none, the first of its trace."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    if context is None:
        return Context()
    return set_span_in_context(NonRecordingSpan(_span_context(context, remote=remote)), Context())


def _span_context(context: TraceContext, *, remote: bool = False) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags, TraceState

    return SpanContext(
        trace_id=int(context.trace_id, 16),
        span_id=int(context.span_id, 16),
        is_remote=remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([context.state]),
    )


def _nanoseconds(at: float) -> int:
    return round(at * _NANOSECONDS)
