/** One run: its head, its tree, the answer as it comes, one agent in detail, exits, and its timeline. */

import { AgentPanel } from "./agent_panel.js";
import { AnswerText } from "./answer_text.js";
import { ApiError, cancelRun, get, save } from "./api.js";
import { element, notice, setText } from "./dom.js";
import { ExitsView } from "./exits.js";
import { clock, count, seconds } from "./format.js";
import { LongText } from "./long_text.js";
import { showState, stateBadge } from "./states.js";
import { Timeline } from "./timeline.js";
import { TreeView } from "./tree.js";
import { WatchedRun } from "./watched_run.js";

const TICK_MS = 200;
const TIMELINE_MS = 1000;
/** @type {Object<string, string>} what is said of a stream that is not live */
const CONNECTIONS = {
  connecting: "Connecting …",
  lost: "The connection is lost; trying again. Nothing is missed.",
};

export class RunPanel {
  /**
   * @param {string} id
   * @param {Object} [options]
   * @param {boolean} [options.withTimeline] of its own
   * @param {string} [options.title] for one of several
   */
  constructor(id, { withTimeline = true, title = "" } = {}) {
    this.run = new WatchedRun(id);
    this._agent = /** @type {AgentPanel | null} */ (null);
    this._agentId = /** @type {string | null} */ (null);
    /** The state that was last told to who listens. */
    this._said = /** @type {string | undefined} */ (undefined);
    this._asking = false;
    /** Whether the timeline is that of the whole run. */
    this._timelineWhole = false;
    this._tree = new TreeView(this.run, (agent) => this._choose(agent));
    this._exits = new ExitsView();
    this._answer = new AnswerText("Answer");
    this._answerTitle = element("h3", {}, "Answer");
    this._thinking = new LongText("Thinking");
    this._thought = element("details", { hidden: true }, element("summary", {}, "Thinking"), this._thinking.root);
    this._badge = stateBadge();
    this._question = element("p", { class: "question" });
    this._facts = element("p", { class: "faint run-facts" });
    this._connection = element("p", { class: "connection", role: "status" });
    this._problem = element("p", { class: "problem", role: "alert", hidden: true });
    this._announce = element("p", { class: "unseen", role: "status", "aria-live": "polite" });
    this._cancel = element(
      "button",
      { type: "button", class: "danger", on: { click: () => void this._end() } },
      "Cancel",
    );
    this._clock = element("strong", { class: "clock" });
    this._timeline = withTimeline ? new Timeline() : null;
    this._beside = element("div", { class: "beside" });
    const path = `runs/${encodeURIComponent(id)}`;
    const saves = (/** @type {string} */ words, /** @type {string} */ from, /** @type {string} */ name) =>
      element("button", { type: "button", class: "quiet", on: { click: () => void tried(save(from, name)) } }, words);
    this.root = element(
      "article",
      { class: "run", "aria-label": title || "Run" },
      element(
        "header",
        { class: "panel run-head" },
        element(
          "div",
          { class: "panel-head" },
          title && element("h2", {}, title),
          this._badge,
          this._clock,
          element(
            "div",
            { class: "buttons" },
            saves("Save record", path, `${id}.json`),
            saves("Save trace", `${path}/trace`, `${id}.trace.json`),
            this._cancel,
          ),
        ),
        this._question,
        this._facts,
        this._connection,
        this._problem,
        this._announce,
      ),
      element(
        "div",
        { class: "columns" },
        element("div", { class: "column" }, this._tree.root, this._exits.root),
        element(
          "div",
          { class: "column" },
          element(
            "section",
            { class: "panel answer", "aria-label": "Answer" },
            this._answerTitle,
            this._thought,
            this._answer.root,
          ),
          this._beside,
        ),
      ),
      this._timeline?.root,
    );
    this.run.addEventListener("frame", () => this._update());
    this._updates = () => this._update();
    addEventListener("answerschange", this._updates);
    this.run.addEventListener("connection", () => this._connected());
    this._ticks = setInterval(() => this._tick(), TICK_MS);
    this._asks = this._timeline === null ? 0 : setInterval(() => void this._ask(), TIMELINE_MS);
    this._connected();
    void this.run.watch();
  }

  stop() {
    this.run.stop();
    this._tree.stop();
    this._timeline?.stop();
    removeEventListener("answerschange", this._updates);
    clearInterval(this._ticks);
    clearInterval(this._asks);
  }

  _update() {
    const run = this.run.run;
    if (run === null) return;
    showState(this._badge, run.state);
    setText(this._question, run.question);
    const told = [run.tree, run.mode, `drafts ${run.drafts}`];
    if (run.early_exit !== "off") told.push(`early exit: ${run.early_exit}`);
    if (run.ttft_s !== null) told.push(`first token ${seconds(run.ttft_s)}`);
    told.push(`${count(run.usage.prompt_tokens)} tokens in, ${count(run.usage.completion_tokens)} out`);
    if (run.tokens_saved > 0) told.push(`${count(run.tokens_saved)} saved`);
    if (run.degraded) told.push("without an agent that failed");
    told.push(`began ${clock(run.created)}`);
    setText(this._facts, told.join(" · "));
    this._problem.hidden = run.error === null;
    setText(this._problem, run.error ?? "");
    this._cancel.hidden = run.state !== "running";
    this._tree.update();
    this._exits.update(this.run.checks);
    const answering = this.run.answering;
    const answer = this.run.texts.get(answering?.id ?? "") ?? { text: "", thinking: "" };
    setText(this._answerTitle, answering === undefined ? "Answer" : `Answer of ${answering.id}`);
    this._answer.set(answer.text, this.run.over(answering?.id));
    this._thought.hidden = answer.thinking === "";
    this._thinking.set(answer.thinking);
    this._agent?.update();
    if (run.state !== this._said) {
      if (this._said !== undefined) setText(this._announce, `The run is ${run.state}.`);
      this._said = run.state;
      void this._ask();
    }
    this._tick();
  }

  _tick() {
    if (this.run.run !== null) setText(this._clock, seconds(this.run.now));
  }

  _connected() {
    setText(this._connection, CONNECTIONS[this.run.connection] ?? "");
    if (this.run.connection === "gone") {
      this._problem.hidden = false;
      setText(this._problem, this.run.problem);
      this._cancel.hidden = true;
    }
    if (this.run.connection === "over") void this._ask();
  }

  /** @param {string} agent */
  _choose(agent) {
    const shown = agent === this._agentId ? null : agent;
    this._agentId = shown;
    this._tree.mark(shown);
    this._agent = shown === null ? null : new AgentPanel(this.run, shown, () => this._choose(shown));
    this._beside.replaceChildren(...(this._agent === null ? [] : [this._agent.root]));
    this._agent?.update();
    if (this._agent !== null && matchMedia("(max-width: 60rem)").matches) this._agent.root.scrollIntoView();
  }

  /** Fetch the timeline, while the run goes on and once when it has ended. */
  async _ask() {
    if (this._timeline === null || this._asking || this.run.run === null || document.hidden) return;
    if (!this.run.running && this._timelineWhole) return;
    this._asking = true;
    const over = this.run.connection === "over";
    try {
      const spans = await get(`runs/${encodeURIComponent(this.run.id)}/timeline`);
      this._timeline.show([{ title: `${spans.state === "running" ? "So far" : this.run.run.mode}`, spans }]);
      if (over) this._timelineWhole = true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    } finally {
      this._asking = false;
    }
  }

  async _end() {
    this._cancel.setAttribute("disabled", "");
    await tried(cancelRun(this.run.id));
    this._cancel.removeAttribute("disabled");
  }
}

/**
 * Wait, and tell what went wrong.
 * @param {Promise<any>} work
 */
async function tried(work) {
  try {
    await work;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notice(error.message);
  }
}
