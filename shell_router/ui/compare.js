/** Two runs side by side, on one time axis. */

import { ApiError, get } from "./api.js";
import { beginNext } from "./ask.js";
import { element, setText } from "./dom.js";
import { count, seconds } from "./format.js";
import { RunPanel } from "./run_panel.js";
import { Timeline } from "./timeline.js";

const EVERY_MS = 1000;
/** In place of the second run's id: it begins when the first has ended. */
const NEXT = "next";

export class CompareView {
  /**
   * @param {string} first
   * @param {string} second an id, or `next`
   */
  constructor(first, second) {
    /** @type {RunPanel[]} */
    this._panels = [];
    /** @type {Map<string, any>} timelines of runs that have ended */
    this._kept = new Map();
    this._waiting = element(
      "p",
      { class: "panel faint", role: "status" },
      "The same question goes out spliced when this run has ended.",
    );
    this._pair = element("div", { class: "pair" });
    this._rows = element("tbody");
    this._heads = element("tr");
    this._timeline = new Timeline();
    this._asking = false;
    /** Which runs the timeline shows, and until when. */
    this._drawn = "";
    this.root = element(
      "div",
      { class: "compare" },
      element(
        "section",
        { class: "panel", "aria-label": "Comparison" },
        element("h2", {}, "Side by side"),
        element(
          "div",
          { class: "scrolls" },
          element("table", { class: "compared" }, element("thead", {}, this._heads), this._rows),
        ),
      ),
      this._timeline.root,
      this._pair,
    );
    this._add(first);
    if (second === NEXT) {
      this._pair.append(this._waiting);
      this._panels[0].run.addEventListener("connection", () => void this._go(first));
    } else this._add(second);
    this._asks = setInterval(() => void this._ask(), EVERY_MS);
  }

  stop() {
    clearInterval(this._asks);
    this._timeline.stop();
    for (const panel of this._panels) panel.stop();
  }

  /** @param {string} id */
  _add(id) {
    const panel = new RunPanel(id, { withTimeline: false, title: this._panels.length === 0 ? "First" : "Second" });
    panel.run.addEventListener("frame", () => this._compare());
    panel.run.addEventListener("connection", () => void this._ask());
    this._panels.push(panel);
    this._pair.append(panel.root);
  }

  /** @param {string} first */
  async _go(first) {
    if (this._panels.length > 1 || this._panels[0].run.connection !== "over") return;
    try {
      const id = await beginNext(first);
      if (id === null) return setText(this._waiting, "This comparison was cut off before its second run.");
      this._waiting.remove();
      this._add(id);
      // The address is now that of both; nothing on the page has to be made anew.
      history.replaceState(null, "", `#/compare/${encodeURIComponent(first)}/${encodeURIComponent(id)}`);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setText(this._waiting, error.message);
    }
  }

  _compare() {
    const runs = this._panels.map((panel) => panel.run).filter((run) => run.run !== null);
    this._heads.replaceChildren(
      ...["", ...runs.map((run) => run.run?.mode ?? ""), runs.length > 1 && "second / first"]
        .filter((each) => each !== false)
        .map((each) => element("th", { scope: "col" }, each)),
    );
    const rows = FIGURES.map(([words, read, shown]) => {
      const values = runs.map(read);
      const [one, other] = values;
      const ratio = runs.length > 1 && one && other ? (other / one).toFixed(3) : "–";
      return element(
        "tr",
        {},
        element("th", { scope: "row" }, words),
        ...values.map((value) => element("td", {}, value === null ? "–" : shown(value))),
        runs.length > 1 && element("td", {}, ratio),
      );
    });
    this._rows.replaceChildren(...rows);
  }

  async _ask() {
    if (this._asking || document.hidden) return;
    this._asking = true;
    try {
      const lanes = [];
      for (const { run } of this._panels) {
        if (run.run === null) continue;
        const over = run.connection === "over";
        const spans = this._kept.get(run.id) ?? (await get(`runs/${encodeURIComponent(run.id)}/timeline`));
        if (over) this._kept.set(run.id, spans);
        lanes.push({ title: run.run.mode, spans });
      }
      const now = JSON.stringify(lanes.map((lane) => [lane.spans.run, lane.spans.until_s]));
      if (lanes.length > 0 && now !== this._drawn) this._timeline.show(lanes);
      this._drawn = now;
    } catch (error) {
      // That there is no answer the runs' own streams tell.
      if (!(error instanceof ApiError)) throw error;
    } finally {
      this._asking = false;
    }
  }
}

/** @typedef {import("./watched_run.js").WatchedRun} WatchedRun */

/** @param {WatchedRun} run @param {"hidden_prefill_s" | "exposed_prefill_s"} name */
function total(run, name) {
  return [...run.agents.values()].reduce((sum, agent) => sum + (agent[name] ?? 0), 0);
}

/** @type {[string, (run: WatchedRun) => number | null, (value: number) => string][]} */
const FIGURES = [
  ["end to end", (run) => run.run?.duration_s ?? null, seconds],
  ["first token", (run) => run.run?.ttft_s ?? null, seconds],
  ["exposed prefill, all agents", (run) => total(run, "exposed_prefill_s"), seconds],
  ["hidden prefill, all agents", (run) => total(run, "hidden_prefill_s"), seconds],
  ["tokens in", (run) => run.run?.usage.prompt_tokens ?? null, count],
  ["tokens out", (run) => run.run?.usage.completion_tokens ?? null, count],
];
