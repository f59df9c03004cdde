/** The workers as the router knows them: queues, KV in use, sessions, drafts. */

import { ApiError, get } from "./api.js";
import { element, setText } from "./dom.js";
import { count, counted, percent } from "./format.js";

const EVERY_MS = 2000;
const COLUMNS = [
  "Worker",
  "Role",
  "Serves",
  "In hand",
  "Waiting",
  "Busy",
  "Sessions",
  "KV of sessions",
  "Appends",
  "Drafts right",
];

/** @typedef {{url: string, models: string[], role: string, there: boolean | null, version: string | null,
 *   device: string | null, requests: number, our_requests: number, our_tokens: number,
 *   sessions: {open: number, most: number, held_tokens: number, most_tokens: number, waiting_tokens: number,
 *     load: number, appends: number, recomputed_tokens: number, lost: number} | null,
 *   drafts: {steps: number, drafted: number, accepted: number} | null}} Worker */

export class WorkersView {
  constructor() {
    this._looking = false;
    this._rows = element("tbody");
    this._told = element("p", { class: "faint", role: "status" }, "Asking …");
    this.root = element(
      "section",
      { class: "panel", "aria-label": "Workers" },
      element("h2", {}, "Workers"),
      this._told,
      element(
        "div",
        { class: "scrolls" },
        element(
          "table",
          {},
          element("thead", {}, element("tr", {}, ...COLUMNS.map((each) => element("th", { scope: "col" }, each)))),
          this._rows,
        ),
      ),
      element(
        "p",
        { class: "faint" },
        "What workers last said of themselves, and what this router has given them since. KV is that of sessions; what " +
          "a worker's prefix cache holds beside it only the worker knows.",
      ),
    );
    this._timer = setInterval(() => void this._look(), EVERY_MS);
    void this._look();
  }

  stop() {
    clearInterval(this._timer);
  }

  async _look() {
    if (this._looking || document.hidden) return;
    this._looking = true;
    try {
      /** @type {{data: Worker[], runs_running: number, runs_queued: number}} */
      const told = await get("workers");
      const runs = `${counted(told.runs_running, "run")} under way, ${count(told.runs_queued)} waiting for a place`;
      setText(this._told, told.data.length === 0 ? `${runs}. The router knows no workers of its own.` : `${runs}.`);
      this._rows.replaceChildren(...told.data.map(row));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setText(this._told, error.message);
      this._rows.replaceChildren();
    } finally {
      this._looking = false;
    }
  }
}

/** @param {Worker} worker */
function row(worker) {
  const { sessions, drafts } = worker;
  const there = worker.there === null ? "not asked yet" : worker.there ? "there" : "does not answer";
  return element(
    "tr",
    { data: { there: String(worker.there) } },
    element(
      "th",
      { scope: "row" },
      worker.url,
      element(
        "span",
        { class: "faint block-line" },
        [there, worker.version && `SGLang ${worker.version}`, worker.device].filter(Boolean).join(", "),
      ),
    ),
    element("td", {}, worker.role),
    element("td", {}, worker.models.join(", ")),
    element(
      "td",
      {},
      counted(worker.requests, "request"),
      worker.our_requests > 0 &&
        element("span", { class: "faint block-line" }, `${count(worker.our_tokens)} prompt tokens of ours`),
    ),
    element("td", {}, sessions === null ? "–" : `${count(sessions.waiting_tokens)} tok`),
    element("td", {}, sessions === null ? "–" : meter(sessions.load, 1, percent(sessions.load, 1))),
    element("td", {}, sessions === null ? "none" : `${sessions.open} of ${sessions.most}`),
    element(
      "td",
      {},
      sessions === null
        ? "–"
        : meter(
            sessions.held_tokens,
            sessions.most_tokens,
            `${count(sessions.held_tokens)} of ${count(sessions.most_tokens)} tok`,
          ),
    ),
    element("td", {}, sessions === null ? "–" : count(sessions.appends)),
    element("td", {}, drafts === null ? "–" : percent(drafts.accepted, drafts.drafted)),
  );
}

/**
 * @param {number} value
 * @param {number} most
 * @param {string} words
 */
function meter(value, most, words) {
  return element(
    "span",
    { class: "metered" },
    element("meter", { min: 0, max: Math.max(1e-9, most), value, "aria-label": words }),
    words,
  );
}
