/** The states of runs and agents: what is said of each, and the sign that tells it without colour. */

import { element, setText } from "./dom.js";

/** @type {Object<string, [string, string]>} sign, words */
const STATES = {
  waiting: ["○", "waiting"],
  appending: ["◔", "prefilling ahead"],
  committed: ["◑", "prefilling"],
  streaming: ["◕", "answering"],
  running: ["◕", "running"],
  done: ["●", "done"],
  cancelled: ["⊘", "cancelled"],
  skipped: ["⊖", "not needed"],
  failed: ["✕", "failed"],
};

/** @param {string} state */
export function stateWords(state) {
  return STATES[state]?.[1] ?? state;
}

/** @returns {HTMLElement} a badge; `showState` fills it */
export function stateBadge() {
  return element("span", { class: "state" }, element("span", { "aria-hidden": "true" }), element("span"));
}

/**
 * @param {HTMLElement} badge
 * @param {string} state
 */
export function showState(badge, state) {
  badge.dataset.state = state;
  const [sign, words] = badge.children;
  setText(sign, STATES[state]?.[0] ?? "·");
  setText(words, stateWords(state));
}
