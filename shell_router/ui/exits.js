/** Checks of answers for an early exit: what was compared, how it was decided, whom it spared. */

import { element } from "./dom.js";
import { seconds } from "./format.js";

/** @typedef {import("./watched_run.js").Check} Check */

export class ExitsView {
  constructor() {
    this._list = element("ol", { class: "checks" });
    this.root = element(
      "section",
      { class: "panel", "aria-label": "Early exits and votes", hidden: true },
      element("h3", {}, "Early exits and votes"),
      this._list,
    );
    this._shown = "";
  }

  /** @param {Map<string, Check>} checks */
  update(checks) {
    const sorted = [...checks.values()].sort((one, other) => one.asked_s - other.asked_s);
    const now = JSON.stringify(sorted);
    if (now === this._shown) return;
    this._shown = now;
    this.root.hidden = sorted.length === 0;
    this._list.replaceChildren(...sorted.map(item));
  }
}

/** @param {Check} check */
function item(check) {
  const exits = check.cancelled.length > 0;
  return element(
    "li",
    { data: { exits } },
    element("strong", {}, outcome(check)),
    element("span", { class: "faint" }, ` at ${seconds(check.answered_s ?? check.asked_s)}: `),
    `answers of ${check.agents.join(", ")}. `,
    exits && `Not waited for: ${check.cancelled.join(", ")}. `,
    element("span", { class: "faint" }, numbers(check)),
  );
}

/** @param {Check} check */
function outcome(check) {
  if (check.cancelled.length > 0) return "Exit";
  if (check.answered_s === null) return "Being compared";
  if (check.verdict === null) return check.error === null ? "Unanswered" : `Not compared: ${check.error}`;
  return check.verdict.exits || check.verdict.agrees ? "They suffice, and all had ended" : "Goes on";
}

/** @param {Check} check */
function numbers(check) {
  const said = [];
  if (check.verdict?.votes?.length > 0) said.push(`votes ${check.verdict.votes.join(" : ")}`);
  if (check.ballots !== null)
    said.push(`ballots ${check.ballots.map((one) => (one === null ? "none" : `#${one}`)).join(", ")}`);
  for (const name of ["agreement", "confidence", "quality", "draw"]) {
    const value = check.verdict?.[name];
    if (typeof value === "number") said.push(`${name} ${value.toFixed(3)}`);
  }
  if (check.likeness !== null && check.likeness.length > 0) {
    said.push(`likeness ${Math.min(...check.likeness).toFixed(2)} to ${Math.max(...check.likeness).toFixed(2)}`);
  }
  return said.join(", ");
}
