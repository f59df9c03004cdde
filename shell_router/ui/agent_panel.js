/** One agent in detail: its answer, its prompt with the slots marked, its times and drafts. */

import { AnswerText } from "./answer_text.js";
import { ApiError, get } from "./api.js";
import { element, setText } from "./dom.js";
import { count, percent, seconds } from "./format.js";
import { LongText } from "./long_text.js";
import { showState, stateBadge } from "./states.js";

/** @typedef {import("./watched_run.js").WatchedRun} WatchedRun */
/** @typedef {import("./watched_run.js").Agent} Agent */

export class AgentPanel {
  /**
   * @param {WatchedRun} run
   * @param {string} id
   * @param {() => void} close
   */
  constructor(run, id, close) {
    this._run = run;
    this._id = id;
    this._badge = stateBadge();
    this._problem = element("p", { class: "problem", role: "alert", hidden: true });
    this._answer = new AnswerText(`Answer of ${id}`);
    this._thinking = new LongText(`What ${id} thinks`);
    this._thought = element("details", { hidden: true }, element("summary", {}, "Thinking"), this._thinking.root);
    this._prompt = element("div", {
      class: "long-text prompt",
      tabindex: 0,
      role: "region",
      "aria-label": `Prompt of ${id}`,
    });
    this._promptNote = element("p", { class: "faint" }, "The prompt is shown when it is whole.");
    this._figures = element("dl", { class: "facts" });
    this._hasPrompt = false;
    this.root = element(
      "section",
      { class: "panel agent", "aria-label": `Agent ${id}` },
      element(
        "div",
        { class: "panel-head" },
        element("h3", {}, id),
        this._badge,
        element(
          "button",
          { type: "button", class: "quiet", "aria-label": `Close agent ${id}`, on: { click: close } },
          "✕",
        ),
      ),
      this._problem,
      this._figures,
      element("h4", {}, "Answer"),
      this._thought,
      this._answer.root,
      element("h4", {}, "Prompt"),
      this._promptNote,
      this._prompt,
    );
  }

  update() {
    const agent = this._run.agents.get(this._id);
    if (agent === undefined) return;
    const told = this._run.texts.get(this._id) ?? { text: "", thinking: "" };
    showState(this._badge, agent.state);
    this._problem.hidden = agent.error === null;
    setText(this._problem, agent.error ?? "");
    this._answer.set(told.text, this._run.over(this._id));
    this._thought.hidden = told.thinking === "";
    this._thinking.set(told.thinking);
    this._show(facts(agent));
    // It is whole when the request of the answer has gone out.
    if (agent.committed_s !== null && !this._hasPrompt) void this._fetchPrompt();
  }

  /** @param {[string, string][]} facts */
  _show(facts) {
    if (this._figures.children.length !== facts.length) {
      this._figures.replaceChildren(...facts.map(() => element("div", {}, element("dt"), element("dd"))));
    }
    facts.forEach(([name, value], number) => {
      const [term, told] = this._figures.children[number].children;
      setText(term, name);
      setText(told, value);
    });
  }

  async _fetchPrompt() {
    this._hasPrompt = true;
    try {
      const path = `runs/${encodeURIComponent(this._run.id)}/agents/${encodeURIComponent(this._id)}`;
      /** @type {{prompt: {text: string, answer_of: string | null}[]}} */
      const detail = await get(path);
      this._prompt.replaceChildren(...detail.prompt.map(part));
      this._promptNote.hidden = detail.prompt.length > 0;
      this._hasPrompt = detail.prompt.length > 0;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setText(this._promptNote, error.message);
    }
  }
}

/** @param {{text: string, answer_of: string | null}} piece */
function part(piece) {
  if (piece.answer_of === null) return element("span", {}, piece.text);
  const whose = `answer of ${piece.answer_of}`;
  return element("mark", { class: "slot", title: whose }, element("span", { class: "slot-name" }, whose), piece.text);
}

/**
 * @param {Agent} agent
 * @returns {[string, string][]}
 */
function facts(agent) {
  /** @type {[string, string][]} */
  const facts = [
    ["model", agent.model],
    ["reads", agent.precursors.join(", ") || "the question"],
    [
      "prompt",
      `${count(agent.prompt_tokens)} tokens${agent.cached_tokens ? `, ${count(agent.cached_tokens)} cached` : ""}`,
    ],
    ["answer", `${count(agent.output_tokens)} tokens${agent.finish_reason ? `, ended by ${agent.finish_reason}` : ""}`],
    ["asked at", seconds(agent.committed_s)],
    ["first token at", seconds(agent.first_token_s)],
    ["ended at", seconds(agent.ended_s)],
    ["exposed prefill", seconds(agent.exposed_prefill_s)],
  ];
  if (agent.appends > 0) {
    facts.push(["hidden prefill", `${seconds(agent.hidden_prefill_s)}, ${count(agent.hidden_prefill_tokens)} tokens`]);
    facts.push(["appends", `${count(agent.appends)} over ${agent.served_by}`]);
  } else if (agent.withheld !== null) facts.push(["no append", `${agent.withheld}: it would not have paid`]);
  if (agent.drafts !== null) {
    const { steps, drafted, accepted, tokens_per_step: perStep } = agent.drafts;
    facts.push([
      "drafts",
      `${percent(accepted, drafted)} of ${count(drafted)} right, ${count(steps)} steps, ${perStep?.toFixed(2) ?? "–"} tokens a step`,
    ]);
  }
  if (agent.thinking_tokens > 0) facts.push(["thinking", `${count(agent.thinking_tokens)} tokens`]);
  if (agent.confidence !== null && agent.output_tokens > 0) facts.push(["confidence", agent.confidence.toFixed(3)]);
  if (agent.tokens_saved > 0) facts.push(["saved", `${count(agent.tokens_saved)} tokens at most`]);
  if (agent.attempts > 1) facts.push(["asked", `${agent.attempts} times`]);
  if (agent.fallback !== null) facts.push(["went another way", agent.fallback]);
  return facts;
}
