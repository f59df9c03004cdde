/** A run as this page knows it, kept up to date by the router's frames. */

import { ApiError } from "./api.js";
import { follow } from "./event_stream.js";

/** @typedef {{id: string, tree: string, mode: string, state: string, error: string | null, question: string,
 *   created: number, answered_by: string | null, degraded: boolean, early_exit: string, drafts: string, seed: number,
 *   ttft_s: number | null, duration_s: number | null, tokens_saved: number,
 *   usage: {prompt_tokens: number, completion_tokens: number, cached_tokens: number}}} Run */
/** @typedef {{id: string, model: string, layer: number, cluster: number, precursors: string[], state: string,
 *   error: string | null, finish_reason: string | null, attempts: number, confidence: number | null,
 *   served_by: string, fallback: string | null, prompt_tokens: number, output_tokens: number,
 *   thinking_tokens: number, cached_tokens: number, ready_s: number | null, committed_s: number | null,
 *   first_token_s: number | null, ended_s: number | null, appends: number, appended_tokens: number,
 *   append_in_flight: boolean, withheld: string | null, hidden_prefill_s: number, exposed_prefill_s: number | null,
 *   hidden_prefill_tokens: number, tokens_saved: number, slot_order: string[],
 *   drafts: {steps: number, drafted: number, accepted: number, tokens_per_step: number | null} | null}} Agent */
/** @typedef {{cluster: number, step: number, agents: string[], asked_s: number, answered_s: number | null,
 *   likeness: number[] | null, ballots: (number | null)[] | null, verdict: any, error: string | null,
 *   cancelled: string[]}} Check */
/** @typedef {{agent: string, anew?: boolean, text?: string, thinking?: string}} Piece */
/** @typedef {{at_s: number, run: Run, agents: Agent[], checks: Check[], texts: Piece[]}} Frame */

/** Fires `frame` (its `detail` is the `Frame`) and `connection`. */
export class WatchedRun extends EventTarget {
  /** @param {string} id */
  constructor(id) {
    super();
    this.id = id;
    /** @type {Run | null} */
    this.run = null;
    /** @type {Map<string, Agent>} in the order of layers, the root last */
    this.agents = new Map();
    /** @type {Map<string, Check>} */
    this.checks = new Map();
    /** @type {Map<string, {text: string, thinking: string}>} */
    this.texts = new Map();
    /** @type {"connecting" | "live" | "lost" | "over" | "gone"} */
    this.connection = "connecting";
    /** Why there is nothing to see. */
    this.problem = "";
    this._end = new AbortController();
    this._atS = 0;
    this._heard = performance.now();
  }

  /** Begin to watch; returns when the run is over, or `stop` is called. */
  async watch() {
    try {
      await follow(
        `runs/${encodeURIComponent(this.id)}/watch`,
        { event: (frame) => this._take(frame), connection: (state) => this._connected(state) },
        this._end.signal,
      );
      if (!this._end.signal.aborted) this._connected("over");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error.message;
      this._connected("gone");
    }
  }

  stop() {
    this._end.abort();
  }

  get running() {
    return this.run === null ? this.connection !== "gone" : this.run.state === "running";
  }

  /** Seconds since the run began; of one that has ended, how long it took. */
  get now() {
    if (this.run === null) return 0;
    if (!this.running) return this.run.duration_s ?? this._atS;
    return this._atS + (performance.now() - this._heard) / 1000;
  }

  /** The agent whose answer is the run's.  @returns {Agent | undefined} */
  get answering() {
    const all = [...this.agents.values()];
    return this.agents.get(this.run?.answered_by ?? "") ?? all[all.length - 1];
  }

  /** Whether an agent's answer has ended.  @param {string | undefined} id */
  over(id) {
    return !this.running || (this.agents.get(id ?? "")?.ended_s ?? null) !== null;
  }

  /** @returns {Agent[][]} the agents of each layer, proposers first */
  get layers() {
    /** @type {Agent[][]} */
    const layers = [];
    for (const agent of this.agents.values()) (layers[agent.layer] ??= []).push(agent);
    return layers;
  }

  /** @param {Frame} frame */
  _take(frame) {
    this.run = frame.run;
    this._atS = frame.at_s;
    this._heard = performance.now();
    for (const agent of frame.agents) this.agents.set(agent.id, agent);
    for (const check of frame.checks) this.checks.set(`${check.cluster} ${check.step}`, check);
    for (const piece of frame.texts) {
      const before = piece.anew ? undefined : this.texts.get(piece.agent);
      this.texts.set(piece.agent, {
        text: (before?.text ?? "") + (piece.text ?? ""),
        thinking: (before?.thinking ?? "") + (piece.thinking ?? ""),
      });
    }
    this.dispatchEvent(new CustomEvent("frame", { detail: frame }));
  }

  /** @param {"live" | "lost" | "over" | "gone"} state */
  _connected(state) {
    this.connection = state;
    this.dispatchEvent(new CustomEvent("connection"));
  }
}
