/** The agents of a run as layers, proposers above, and lines from each to those who read it. */

import { drawing, element, setText } from "./dom.js";
import { count, seconds } from "./format.js";
import { showState, stateBadge, stateWords } from "./states.js";

/** Characters of an answer that a card shows: its end. */
const TAIL = 160;
/** With more agents in a layer its cards are small. */
const DENSE = 5;
/** With more agents cards show no text, and with more lines none are drawn. */
const MOST_WITH_TEXT = 64;
const MOST_LINES = 600;

/** @typedef {import("./watched_run.js").WatchedRun} WatchedRun */
/** @typedef {import("./watched_run.js").Agent} Agent */

export class TreeView {
  /**
   * @param {WatchedRun} run
   * @param {(agent: string) => void} choose called when an agent is chosen
   */
  constructor(run, choose) {
    this._run = run;
    this._choose = choose;
    /** @type {Map<string, Card>} */
    this._cards = new Map();
    this._lines = drawing("svg", { class: "lines", "aria-hidden": "true", focusable: "false" });
    this._layers = element("div", { class: "layers" });
    this.root = element(
      "div",
      { class: "tree", role: "group", "aria-label": "Agents, in layers", on: { keydown: this._move.bind(this) } },
      this._lines,
      this._layers,
    );
    this._sizes = new ResizeObserver(() => this._drawLines());
    this._sizes.observe(this._layers);
  }

  stop() {
    this._sizes.disconnect();
  }

  /** Show what has changed. */
  update() {
    if (this._cards.size !== this._run.agents.size) this._build();
    for (const card of this._cards.values()) {
      const agent = /** @type {Agent} */ (this._run.agents.get(card.id));
      const told = this._run.texts.get(card.id);
      card.show(agent, told?.text || told?.thinking || "", this._run.running);
    }
    this._markLines();
  }

  /** @param {string | null} agent whose details are shown */
  mark(agent) {
    for (const card of this._cards.values()) card.root.setAttribute("aria-pressed", String(card.id === agent));
  }

  _build() {
    this._cards.clear();
    const withText = this._run.agents.size <= MOST_WITH_TEXT;
    const models = new Set([...this._run.agents.values()].map((agent) => agent.model)).size;
    const layers = this._run.layers.map((agents, number, all) => {
      const name = number === all.length - 1 ? "Root" : number === 0 ? "Proposers" : `Layer ${number}`;
      const cards = agents.map((agent) => {
        const card = new Card(agent, { withText, withModel: models > 1, dense: agents.length > DENSE }, this._choose);
        this._cards.set(agent.id, card);
        return card.root;
      });
      return element(
        "div",
        { class: "layer", role: "group", "aria-label": name, data: { dense: agents.length > DENSE } },
        ...cards,
      );
    });
    this._layers.replaceChildren(...layers);
    this._drawLines();
  }

  _drawLines() {
    const frame = this._layers.getBoundingClientRect();
    const agents = [...this._run.agents.values()];
    const pairs = agents.flatMap((reader) => reader.precursors.map((read) => /** @type {const} */ ([read, reader.id])));
    this._lines.replaceChildren();
    if (pairs.length > MOST_LINES || frame.width === 0) return;
    this._lines.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    for (const [from, to] of pairs) {
      const [above, below] = [this._cards.get(from), this._cards.get(to)];
      if (above === undefined || below === undefined) continue;
      const [top, bottom] = [above.root.getBoundingClientRect(), below.root.getBoundingClientRect()];
      const [x1, y1] = [top.left + top.width / 2 - frame.left, top.bottom - frame.top];
      const [x2, y2] = [bottom.left + bottom.width / 2 - frame.left, bottom.top - frame.top];
      const middle = (y1 + y2) / 2;
      const d = `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`;
      this._lines.append(drawing("path", { d, data: { from, to } }));
    }
    this._markLines();
  }

  /** Lines along which tokens go: into a prompt that is prefilled while its precursors still answer. */
  _markLines() {
    for (const line of this._lines.children) {
      const from = this._run.agents.get(line.getAttribute("data-from") ?? "");
      const to = this._run.agents.get(line.getAttribute("data-to") ?? "");
      const flows = from?.state === "streaming" && (to?.state === "appending" || to?.append_in_flight);
      line.setAttribute("class", flows ? "flows" : from?.state === "done" ? "read" : from?.ended_s ? "unread" : "");
    }
  }

  /**
   * Arrow keys go from card to card.
   * @param {KeyboardEvent} event
   */
  _move(event) {
    const cards = [...this._layers.querySelectorAll(".card")];
    const at = cards.indexOf(/** @type {Element} */ (document.activeElement));
    if (at === -1) return;
    const layer = cards[at].parentElement;
    const beside = [...(layer?.children ?? [])];
    const place = beside.indexOf(cards[at]);
    /** @type {Element | undefined} */
    let next;
    if (event.key === "ArrowRight") next = beside[place + 1];
    else if (event.key === "ArrowLeft") next = beside[place - 1];
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const other = event.key === "ArrowDown" ? layer?.nextElementSibling : layer?.previousElementSibling;
      const there = [...(other?.children ?? [])];
      next = there[Math.min(there.length - 1, Math.floor((place * there.length) / beside.length))];
    } else return;
    event.preventDefault();
    /** @type {HTMLElement | undefined} */ (next)?.focus();
  }
}

/** One agent of the tree. */
class Card {
  /**
   * @param {Agent} agent
   * @param {{withText: boolean, withModel: boolean, dense: boolean}} look
   * @param {(agent: string) => void} choose
   */
  constructor(agent, { withText, withModel, dense }, choose) {
    this.id = agent.id;
    this._dense = dense;
    /** The state that was last told to who listens. */
    this._said = "";
    this._badge = stateBadge();
    this._figures = element("span", { class: "figures" });
    this._tail = withText ? element("span", { class: "tail", "aria-hidden": "true" }) : null;
    this.root = element(
      "button",
      {
        class: "card",
        type: "button",
        "aria-pressed": "false",
        data: { agent: agent.id },
        on: { click: () => choose(agent.id) },
      },
      element("span", { class: "name" }, agent.id, withModel && element("span", { class: "faint" }, ` ${agent.model}`)),
      this._badge,
      this._tail,
      this._figures,
    );
  }

  /**
   * @param {Agent} agent
   * @param {string} text
   * @param {boolean} running whether the run is
   */
  show(agent, text, running) {
    showState(this._badge, agent.state);
    this.root.dataset.state = agent.state;
    if (this._tail !== null) setText(this._tail, text.slice(-TAIL));
    setText(this._figures, this._dense ? `${count(agent.output_tokens)} tok` : figures(agent));
    const said = `${agent.id}: ${stateWords(agent.state)}, ${figures(agent) || "no tokens yet"}`;
    // While tokens come a screen reader would read each anew.
    if (!running || this._said !== agent.state) this.root.setAttribute("aria-label", said);
    this._said = agent.state;
  }
}

/**
 * @param {Agent} agent
 * @returns {string}
 */
function figures(agent) {
  const said = [];
  if (agent.output_tokens > 0) said.push(`${count(agent.output_tokens)} tok`);
  if (agent.hidden_prefill_s > 0) said.push(`${seconds(agent.hidden_prefill_s)} hidden`);
  else if (agent.appends > 0) said.push(`${count(agent.appended_tokens)} tok ahead`);
  if (agent.exposed_prefill_s !== null) said.push(`${seconds(agent.exposed_prefill_s)} exposed`);
  const perStep = agent.drafts?.tokens_per_step;
  if (perStep) said.push(`${perStep.toFixed(1)} tok/step`);
  return said.join(" · ");
}
