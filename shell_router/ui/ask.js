/** The box for a question. Asking begins a run, which goes on whatever becomes of this page. */

import { ApiError, get, post } from "./api.js";
import { element, setText } from "./dom.js";

const NEXT = "graft-next:";

export class AskForm {
  constructor() {
    this._question = /** @type {HTMLTextAreaElement} */ (
      element("textarea", {
        id: "question",
        rows: 3,
        required: true,
        placeholder: "What is asked?",
        "aria-describedby": "ask-hint",
        on: { keydown: (/** @type {KeyboardEvent} */ event) => this._key(event) },
      })
    );
    this._tree = choice("tree", []);
    this._mode = choice("mode", [["spliced"], ["blocking"]]);
    this._exit = choice("early-exit", [
      ["", "as the tree says"],
      ["off"],
      ["default"],
      ["threshold"],
      ["paper"],
      ["vote"],
    ]);
    this._drafts = choice("drafts", [["auto"], ["off"]]);
    this._problem = element("p", { class: "problem", role: "alert", hidden: true });
    this._ask = element("button", { type: "submit", class: "primary" }, "Ask");
    this._both = element(
      "button",
      { type: "button", on: { click: () => void this._begin(true) } },
      "Compare both modes",
    );
    this.root = element(
      "form",
      { class: "panel ask", "aria-label": "Ask", on: { submit: (/** @type {Event} */ event) => this._submit(event) } },
      element("label", { for: "question" }, "Question"),
      this._question,
      element(
        "div",
        { class: "choices" },
        labelled("Tree", this._tree),
        labelled("Mode", this._mode),
        labelled("Early exit", this._exit),
        labelled("Drafts", this._drafts),
        element("div", { class: "buttons" }, this._both, this._ask),
      ),
      element(
        "p",
        { class: "faint", id: "ask-hint" },
        "Ctrl and Enter asks. To compare, the question is asked blocking and then spliced, so that neither takes the " +
          "other's workers; the second may find beginnings of prompts in their caches.",
      ),
      this._problem,
    );
    void this._loadTrees();
  }

  /** Whether there is more to see than the form. */
  set small(/** @type {boolean} */ small) {
    this.root.dataset.small = String(small);
  }

  focus() {
    this._question.focus();
  }

  async _loadTrees() {
    try {
      const { data } = await get("models");
      this._tree.replaceChildren(
        ...data.map((/** @type {{id: string}} */ tree) => element("option", { value: tree.id }, tree.id)),
      );
    } catch (error) {
      this._tell(error);
    }
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this._submit(event);
  }

  /** @param {Event} event */
  _submit(event) {
    event.preventDefault();
    void this._begin(false);
  }

  /** @param {boolean} both */
  async _begin(both) {
    if (this._ask.hasAttribute("disabled") || !this._question.reportValidity()) return;
    this._busy(true);
    this._problem.hidden = true;
    try {
      const body = (/** @type {string} */ mode) => ({
        model: this._tree.value,
        messages: [{ role: "user", content: this._question.value }],
        graft: {
          mode,
          drafts: this._drafts.value,
          ...(this._exit.value ? { early_exit: { mode: this._exit.value } } : {}),
        },
      });
      const first = await post("runs", body(both ? "blocking" : this._mode.value));
      if (both) {
        sessionStorage.setItem(NEXT + first.id, JSON.stringify(body("spliced")));
        location.hash = `#/compare/${encodeURIComponent(first.id)}/next`;
      } else {
        location.hash = `#/run/${encodeURIComponent(first.id)}`;
      }
    } catch (error) {
      this._tell(error);
    } finally {
      this._busy(false);
    }
  }

  /** @param {boolean} busy */
  _busy(busy) {
    for (const button of [this._ask, this._both]) button.toggleAttribute("disabled", busy);
    setText(this._ask, busy ? "Waiting for a place …" : "Ask");
  }

  /** @param {unknown} error */
  _tell(error) {
    if (!(error instanceof ApiError)) throw error;
    this._problem.hidden = false;
    setText(this._problem, error.message);
  }
}

/**
 * Begin the second run of a comparison, if it has not been.
 * @param {string} first id of the first
 * @returns {Promise<string | null>} its id
 */
export async function beginNext(first) {
  const kept = sessionStorage.getItem(NEXT + first);
  if (kept === null) return null;
  sessionStorage.removeItem(NEXT + first);
  return (await post("runs", JSON.parse(kept))).id;
}

/**
 * @param {string} id
 * @param {string[][]} options each a value, and what is shown for it if that is something else
 * @returns {HTMLSelectElement}
 */
function choice(id, options) {
  const made = options.map(([value, words]) => element("option", { value }, words ?? value));
  return /** @type {HTMLSelectElement} */ (element("select", { id }, ...made));
}

/**
 * @param {string} words
 * @param {HTMLSelectElement} control
 */
function labelled(words, control) {
  // What is chosen is no part of its name.
  control.setAttribute("aria-label", words);
  return element("label", {}, words, control);
}
