/** All runs the router has records of, live and past: filter, search, open one, compare two. */

import { ApiError, get } from "./api.js";
import { element, setText } from "./dom.js";
import { clock, counted, seconds } from "./format.js";
import { Rows } from "./run_rows.js";
import { showState, stateBadge } from "./states.js";

const EVERY_MS = 2000;
const MOST = 1000;
/** A look at what is new: only when that does not do are all asked for. */
const NEWEST = 50;

/** @typedef {{id: string, tree: string, mode: string, state: string, created: number, question: string,
 *   duration_s: number | null, ttft_s: number | null, degraded: boolean, early_exits: number,
 *   error: string | null}} Summary */

export class RunsView {
  constructor() {
    /** @type {Summary[]} newest first */
    this._runs = [];
    /** @type {string[]} ids of those chosen to be compared */
    this._chosen = [];
    this._looking = false;
    const changed = { input: () => this._show() };
    this._search = /** @type {HTMLInputElement} */ (
      element("input", { type: "search", placeholder: "question or id", "aria-label": "Search", on: changed })
    );
    this._state = filter("State", ["running", "done", "failed", "cancelled"], changed);
    this._mode = filter("Mode", ["spliced", "blocking"], changed);
    this._tree = filter("Tree", [], changed);
    this._count = element("p", { class: "faint", role: "status" });
    this._compare = element(
      "button",
      { type: "button", disabled: true, on: { click: () => this._go() } },
      "Compare two",
    );
    /** @type {Rows<Summary>} */
    this._rows = new Rows("Runs", (run) => this._row(run));
    this.root = element(
      "section",
      { class: "panel runs", "aria-label": "Runs" },
      element(
        "div",
        { class: "choices" },
        element("label", { class: "wide" }, "Search", this._search),
        element("label", {}, "State", this._state),
        element("label", {}, "Mode", this._mode),
        element("label", {}, "Tree", this._tree),
        element("div", { class: "buttons" }, this._compare),
      ),
      this._count,
      this._rows.root,
    );
    this._timer = setInterval(() => void this._look(), EVERY_MS);
    void this._look();
  }

  stop() {
    clearInterval(this._timer);
    this._rows.stop();
  }

  async _look() {
    if (this._looking || (document.hidden && this._runs.length > 0)) return;
    this._looking = true;
    try {
      const all = this._runs.length === 0;
      /** @type {Summary[]} */
      const found = (await get(`runs?limit=${all ? MOST : NEWEST}`)).data;
      this._runs = (all ? found : this._merged(found)) ?? (await get(`runs?limit=${MOST}`)).data;
      this._show();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setText(this._count, error.message);
    } finally {
      this._looking = false;
    }
  }

  /**
   * The runs with what is new.
   * @param {Summary[]} newest
   * @returns {Summary[] | null} null when more may have changed than is known
   */
  _merged(newest) {
    const known = new Set(this._runs.map((run) => run.id));
    const fresh = new Set(newest.map((run) => run.id));
    const rest = this._runs.filter((run) => !fresh.has(run.id));
    const meets = newest.length < NEWEST || newest.some((run) => known.has(run.id));
    if (!meets || rest.some((run) => run.state === "running")) return null;
    return newest.length < NEWEST ? newest : [...newest, ...rest].slice(0, MOST);
  }

  _show() {
    const trees = [...new Set(this._runs.map((run) => run.tree))].sort();
    if (this._tree.options.length !== trees.length + 1) {
      const before = this._tree.value;
      this._tree.replaceChildren(...options(trees));
      this._tree.value = trees.includes(before) ? before : "";
    }
    const words = this._search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this._runs.filter(
      (run) =>
        (!this._state.value || run.state === this._state.value) &&
        (!this._mode.value || run.mode === this._mode.value) &&
        (!this._tree.value || run.tree === this._tree.value) &&
        words.every((word) => `${run.question} ${run.id}`.toLowerCase().includes(word)),
    );
    setText(
      this._count,
      this._runs.length === 0
        ? "No run yet: ask something."
        : `${counted(found.length, "run")} of ${this._runs.length}`,
    );
    this._rows.show(found);
  }

  /** @param {Summary} run */
  _row(run) {
    const badge = stateBadge();
    showState(badge, run.state);
    const box = element("input", {
      type: "checkbox",
      "aria-label": `Compare: ${run.question.slice(0, 60)}`,
      on: {
        change: (/** @type {Event} */ event) => this._choose(run.id, /** @type {HTMLInputElement} */ (event.target)),
      },
    });
    /** @type {HTMLInputElement} */ (box).checked = this._chosen.includes(run.id);
    const told = [
      run.tree,
      run.mode,
      run.early_exits ? counted(run.early_exits, "exit") : "",
      run.degraded ? "degraded" : "",
    ];
    return element(
      "div",
      { class: "run-row" },
      box,
      element(
        "a",
        { href: `#/run/${encodeURIComponent(run.id)}` },
        badge,
        element("span", { class: "row-question" }, run.question),
        element("span", { class: "faint row-told" }, told.filter(Boolean).join(" · ")),
        element("span", { class: "row-time" }, seconds(run.duration_s)),
        element("span", { class: "faint row-clock" }, clock(run.created)),
      ),
    );
  }

  /**
   * @param {string} id
   * @param {HTMLInputElement} box
   */
  _choose(id, box) {
    this._chosen = this._chosen.filter((each) => each !== id);
    if (box.checked) this._chosen = [...this._chosen, id].slice(-2);
    this._compare.toggleAttribute("disabled", this._chosen.length !== 2);
    this._show();
  }

  _go() {
    location.hash = `#/compare/${this._chosen.map(encodeURIComponent).join("/")}`;
  }
}

/** @param {string[]} values */
function options(values) {
  return [element("option", { value: "" }, "all"), ...values.map((value) => element("option", { value }, value))];
}

/**
 * @param {string} name
 * @param {string[]} values
 * @param {Object<string, () => void>} on
 */
function filter(name, values, on) {
  return /** @type {HTMLSelectElement} */ (element("select", { on, "aria-label": name }, ...options(values)));
}
