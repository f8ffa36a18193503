/**
 * The part of the traces that needs OpenTelemetry's packages. They cost 16 MB and a tenth of a second, so this file is imported
 * dynamically, by a process that sends traces.
 */
import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import { type HrTime, ROOT_CONTEXT, SpanKind, SpanStatusCode, TraceFlags, trace } from '@opentelemetry/api';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  ParentBasedSampler,
  type ReadableSpan,
  type Sampler,
  SamplingDecision,
  TraceIdRatioBasedSampler,
} from '@opentelemetry/sdk-trace';
import type { TracesConfig } from '../config.ts';
import type { RemoteParent } from './traceparent.ts';
import type { SpanRecord } from './traces-spans.ts';

const KINDS = {
  internal: SpanKind.INTERNAL,
  client: SpanKind.CLIENT,
  consumer: SpanKind.CONSUMER,
} as const satisfies Record<SpanRecord['kind'], SpanKind>;

/** Whether a run is traced: every daemon that touches the run decides the same, since only the trace's id and its parent count. */
export function runSampler(
  config: TracesConfig['sampler'],
): (traceId: string, parent: RemoteParent | null) => boolean {
  const sampler = samplerOf(config);
  return (traceId, parent) => {
    const context =
      parent === null
        ? ROOT_CONTEXT
        : trace.setSpanContext(ROOT_CONTEXT, {
            traceId,
            spanId: parent.spanId,
            traceFlags: parent.sampled ? TraceFlags.SAMPLED : TraceFlags.NONE,
            isRemote: true,
          });
    const { decision } = sampler.shouldSample(context, traceId, 'run', SpanKind.CONSUMER, {}, []);
    return decision === SamplingDecision.RECORD_AND_SAMPLED;
  };
}

function samplerOf({ name, ratio }: TracesConfig['sampler']): Sampler {
  const root = name.endsWith('always_on')
    ? new AlwaysOnSampler()
    : name.endsWith('always_off')
      ? new AlwaysOffSampler()
      : new TraceIdRatioBasedSampler(ratio);
  return name.startsWith('parentbased_') ? new ParentBasedSampler({ root }) : root;
}

/** Makes the SDK's spans of ours. */
export function spanFactory(
  service: Readonly<Record<string, string>>,
  version: string,
): (traceId: string, parent: RemoteParent | null, span: SpanRecord) => ReadableSpan {
  const resource: ReadableSpan['resource'] = {
    attributes: { ...service },
    merge: () => resource,
    getRawAttributes: () => Object.entries(service),
  };
  const instrumentationScope = { name: 'agentd', version };
  return (traceId, remote, span) => {
    const start = hrTime(span.startMs);
    // A measured latency and the clock can disagree by a fraction: no span ends before it begins.
    const end = hrTime(Math.max(span.startMs, span.endMs));
    const given = Object.entries(span.attributes).filter(([, value]) => value !== null);
    const attributes = Object.fromEntries(given) as ReadableSpan['attributes'];
    if (span.error !== null) attributes['error.type'] = span.error;
    const context = { traceId, spanId: span.spanId, traceFlags: TraceFlags.SAMPLED };
    const isRemote = remote !== null && remote.spanId === span.parentSpanId;
    return {
      name: span.name,
      kind: KINDS[span.kind],
      spanContext: () => context,
      ...(span.parentSpanId === null
        ? {}
        : { parentSpanContext: { ...context, spanId: span.parentSpanId, isRemote } }),
      startTime: start,
      endTime: end,
      duration: hrTime(Math.max(0, span.endMs - span.startMs)),
      ended: true,
      status:
        span.error === null
          ? { code: SpanStatusCode.UNSET }
          : { code: SpanStatusCode.ERROR, message: span.error },
      attributes,
      links: [],
      events: [],
      resource,
      instrumentationScope,
      droppedAttributesCount: 0,
      droppedEventsCount: 0,
      droppedLinksCount: 0,
    };
  };
}

function hrTime(ms: number): HrTime {
  const micros = Math.round(ms * 1000);
  return [Math.floor(micros / 1e6), (micros % 1e6) * 1000];
}

/** Sends spans by OTLP over HTTP, as JSON. */
export type SpanSender = {
  /** Rejects if they did not arrive. Settles within the limit, whatever the collector does. */
  readonly send: (spans: readonly ReadableSpan[]) => Promise<void>;
  readonly close: () => void;
};

/** @param limitMs how long a request may take */
export function spanSender(config: TracesConfig, limitMs: number): SpanSender {
  const options = { keepAlive: true, maxSockets: 1 };
  const agent = config.url.startsWith('https:') ? new HttpsAgent(options) : new HttpAgent(options);
  const exporter = new OTLPTraceExporter({
    url: config.url,
    headers: { ...config.headers },
    timeoutMillis: limitMs,
    httpAgentOptions: () => agent,
  });
  return {
    send(spans) {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      // The exporter's own limit is one of silence: an answer that comes a byte at a time would hold it for ever.
      const timer = setTimeout(() => {
        agent.destroy();
        reject(new Error(`The collector gave no answer within ${limitMs} ms.`));
      }, limitMs);
      exporter.export([...spans], ({ error, code }) => {
        if (code === 0) resolve();
        else reject(error ?? new Error('The collector refused the spans.'));
      });
      return promise.finally(() => clearTimeout(timer));
    },
    close: () => agent.destroy(),
  };
}
