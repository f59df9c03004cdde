/** What all agents were doing when, of one run or of several on one axis: a canvas to zoom and to move. */

import { element, setText } from "./dom.js";
import { count, seconds } from "./format.js";
import { stateWords } from "./states.js";

/** @typedef {{kind: string, start_s: number, end_s: number, tokens?: number, unfinished?: boolean}} Span */
/** @typedef {{run: string, state: string, until_s: number, ttft_s: number | null,
 *   agents: {id: string, layer: number, spans: Span[]}[],
 *   checks: {cluster: number, asked_s: number, answered_s: number | null, outcome: string}[]}} Spans */
/** @typedef {{title: string, spans: Spans}} Lane */

/** @type {[string, string][]} kinds and what is said of them, as the legend has them */
const KINDS = [
  ["waiting", "waiting"],
  ["hidden", "hidden prefill"],
  ["exposed", "exposed prefill"],
  ["thinking", "thinking"],
  ["decode", "decoding"],
];
const WORDS = new Map([...KINDS, ["exposed_append", "append, exposed"]]);
const ROW = 20;
const TITLE = 26;
const AXIS = 24;
const GUTTER = 96;
const ZOOM = 1.5;

export class Timeline {
  constructor() {
    /** @type {Lane[]} */
    this._lanes = [];
    this._from = 0;
    this._to = 1;
    /** Whether all is shown, and so what comes is to be as well. */
    this._whole = true;
    this._canvas = /** @type {HTMLCanvasElement} */ (
      element("canvas", {
        tabindex: 0,
        role: "img",
        "aria-label": "Timeline",
        on: {
          keydown: (/** @type {KeyboardEvent} */ event) => this._key(event),
          wheel: (/** @type {WheelEvent} */ event) => this._wheel(event),
          pointerdown: (/** @type {PointerEvent} */ event) => this._grab(event),
          pointermove: (/** @type {PointerEvent} */ event) => this._hover(event),
          pointerup: () => this._let(),
          pointercancel: () => this._let(),
          pointerleave: () => setText(this._readout, this._hint),
        },
      })
    );
    this._hint = "Drag to move, Ctrl and wheel or + and − to zoom, 0 shows all.";
    this._readout = element("p", { class: "readout faint" }, this._hint);
    this._table = element("tbody");
    this._probe = element("i", { hidden: true, "aria-hidden": "true" });
    this._dragged = /** @type {{x: number, from: number, to: number} | null} */ (null);
    const button = (/** @type {string} */ sign, /** @type {string} */ words, /** @type {() => void} */ act) =>
      element("button", { type: "button", "aria-label": words, title: words, on: { click: act } }, sign);
    this.root = element(
      "section",
      { class: "panel timeline", "aria-label": "Timeline" },
      element(
        "div",
        { class: "panel-head" },
        element("h3", {}, "Timeline"),
        element(
          "ul",
          { class: "legend" },
          ...KINDS.map(([kind, words]) =>
            element("li", {}, element("i", { data: { kind }, "aria-hidden": "true" }), words),
          ),
        ),
        element(
          "div",
          { class: "buttons" },
          button("−", "Zoom out", () => this._zoom(1 / ZOOM)),
          button("+", "Zoom in", () => this._zoom(ZOOM)),
          button("All", "Show all", () => this._showAll()),
        ),
      ),
      this._canvas,
      this._probe,
      this._readout,
      element(
        "details",
        {},
        element("summary", {}, "As a table"),
        element(
          "div",
          { class: "scrolls" },
          element(
            "table",
            {},
            element(
              "thead",
              {},
              element(
                "tr",
                {},
                ...["agent", ...KINDS.map(([, words]) => words)].map((each) => element("th", { scope: "col" }, each)),
              ),
            ),
            this._table,
          ),
        ),
      ),
    );
    this._sizes = new ResizeObserver(() => this._draw());
    this._sizes.observe(this._canvas);
    this._scheme = matchMedia("(prefers-color-scheme: dark)");
    this._redraw = () => this._draw();
    this._scheme.addEventListener("change", this._redraw);
    addEventListener("themechange", this._redraw);
  }

  stop() {
    this._sizes.disconnect();
    this._scheme.removeEventListener("change", this._redraw);
    removeEventListener("themechange", this._redraw);
  }

  /** @param {Lane[]} lanes */
  show(lanes) {
    this._lanes = lanes;
    const rows = lanes.reduce((sum, lane) => sum + lane.spans.agents.length, 0);
    this._canvas.style.height = `${AXIS + lanes.length * TITLE + rows * ROW}px`;
    if (this._whole) [this._from, this._to] = [0, this._end()];
    this._tell();
    this._draw();
  }

  _end() {
    return Math.max(0.001, ...this._lanes.map((lane) => lane.spans.until_s)) * 1.01;
  }

  _showAll() {
    this._whole = true;
    [this._from, this._to] = [0, this._end()];
    this._draw();
  }

  /** @param {number} x of the canvas */
  _time(x) {
    return this._from + ((x - GUTTER) / this._width()) * (this._to - this._from);
  }

  _width() {
    return Math.max(1, this._canvas.clientWidth - GUTTER - 8);
  }

  /**
   * @param {number} factor
   * @param {number} [around] the time that stays where it is
   */
  _zoom(factor, around = (this._from + this._to) / 2) {
    const width = Math.max(0.001, (this._to - this._from) / factor);
    const from = around - (around - this._from) / factor;
    this._look(from, from + width);
  }

  /**
   * @param {number} from
   * @param {number} to
   */
  _look(from, to) {
    const end = this._end();
    const width = Math.min(to - from, end);
    this._from = Math.min(Math.max(0, from), end - width);
    this._to = this._from + width;
    this._whole = width >= end;
    this._draw();
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const step = (this._to - this._from) / 5;
    if (event.key === "+" || event.key === "=") this._zoom(ZOOM);
    else if (event.key === "-") this._zoom(1 / ZOOM);
    else if (event.key === "0") this._showAll();
    else if (event.key === "ArrowLeft") this._look(this._from - step, this._to - step);
    else if (event.key === "ArrowRight") this._look(this._from + step, this._to + step);
    else return;
    event.preventDefault();
  }

  /** @param {WheelEvent} event */
  _wheel(event) {
    // Without a key the wheel is the page's.
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this._zoom(event.deltaY < 0 ? ZOOM : 1 / ZOOM, this._time(event.offsetX));
  }

  /** @param {PointerEvent} event */
  _grab(event) {
    this._dragged = { x: event.offsetX, from: this._from, to: this._to };
    this._canvas.setPointerCapture(event.pointerId);
  }

  _let() {
    this._dragged = null;
  }

  /** @param {PointerEvent} event */
  _hover(event) {
    if (this._dragged !== null) {
      const { x, from, to } = this._dragged;
      const by = ((x - event.offsetX) / this._width()) * (to - from);
      if (!this._whole) this._look(from + by, to + by);
      return;
    }
    setText(this._readout, this._under(event.offsetX, event.offsetY) ?? this._hint);
  }

  /**
   * What is at a place of the canvas, in words.
   * @param {number} x
   * @param {number} y
   */
  _under(x, y) {
    const time = this._time(x);
    let top = 0;
    for (const lane of this._lanes) {
      top += TITLE;
      const row = Math.floor((y - top) / ROW);
      if (row >= 0 && row < lane.spans.agents.length) {
        const agent = lane.spans.agents[row];
        const span = agent.spans.find((each) => each.start_s <= time && time <= each.end_s);
        if (span === undefined) return null;
        const tokens = span.tokens ? `, ${count(span.tokens)} tokens` : "";
        const length = `${seconds(span.end_s - span.start_s)}, from ${seconds(span.start_s)} to ${seconds(span.end_s)}`;
        return `${agent.id}: ${WORDS.get(span.kind)}, ${length}${tokens}${span.unfinished ? ", still" : ""}`;
      }
      top += lane.spans.agents.length * ROW;
    }
    return null;
  }

  /** Colours by their names in the style, as a canvas takes them: resolved for the theme at hand. */
  _palette() {
    /** @type {Map<string, string>} */
    const found = new Map();
    return (/** @type {string} */ name) => {
      let known = found.get(name);
      if (known === undefined) {
        this._probe.style.color = `var(${name})`;
        known = getComputedStyle(this._probe).color;
        found.set(name, known);
      }
      return known;
    };
  }

  /** The same for those who do not see it. */
  _tell() {
    const rows = this._lanes.flatMap((lane) =>
      lane.spans.agents.map((agent) => {
        const sums = KINDS.map(([kind]) =>
          agent.spans
            .filter((span) => (span.kind === "exposed_append" ? "exposed" : span.kind) === kind)
            .reduce((sum, span) => sum + span.end_s - span.start_s, 0),
        );
        const name = this._lanes.length > 1 ? `${lane.title}: ${agent.id}` : agent.id;
        return element(
          "tr",
          {},
          element("th", { scope: "row" }, name),
          ...sums.map((sum) => element("td", {}, seconds(sum))),
        );
      }),
    );
    this._table.replaceChildren(...rows);
    const told = this._lanes.map(
      (lane) => `${lane.title}: ${stateWords(lane.spans.state)}, ${seconds(lane.spans.until_s)}`,
    );
    this._canvas.setAttribute("aria-label", `Timeline. ${told.join(". ")}. The table below has the same.`);
  }

  _draw() {
    const [width, height] = [this._canvas.clientWidth, this._canvas.clientHeight];
    const pen = this._canvas.getContext("2d");
    if (pen === null || width === 0 || height === 0) return;
    const ratio = devicePixelRatio || 1;
    this._canvas.width = Math.round(width * ratio);
    this._canvas.height = Math.round(height * ratio);
    pen.scale(ratio, ratio);
    const style = getComputedStyle(this._canvas);
    const colour = this._palette();
    const at = (/** @type {number} */ time) => GUTTER + ((time - this._from) / (this._to - this._from)) * this._width();
    pen.font = `12px ${style.fontFamily}`;
    pen.textBaseline = "middle";
    this._drawAxis(pen, at, height, colour);
    let top = 0;
    for (const lane of this._lanes) {
      pen.fillStyle = colour("--ink");
      pen.textAlign = "left";
      pen.font = `600 12px ${style.fontFamily}`;
      pen.fillText(`${lane.title}, ${seconds(lane.spans.until_s)}`, 0, top + TITLE / 2 + 2);
      pen.font = `12px ${style.fontFamily}`;
      top += TITLE;
      for (const agent of lane.spans.agents) {
        pen.fillStyle = colour("--faint");
        pen.textAlign = "right";
        pen.fillText(short(agent.id), GUTTER - 10, top + ROW / 2);
        for (const span of agent.spans) drawSpan(pen, span, at, top, width, colour);
        top += ROW;
      }
      if (lane.spans.ttft_s !== null)
        drawMark(pen, at(lane.spans.ttft_s), top, lane.spans.agents.length * ROW, colour("--ink"));
      for (const check of lane.spans.checks) {
        if (check.outcome === "exit" && check.answered_s !== null) {
          drawMark(pen, at(check.answered_s), top, lane.spans.agents.length * ROW, colour("--exposed"));
        }
      }
    }
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {(time: number) => number} at
   * @param {number} height
   * @param {(name: string) => string} colour
   */
  _drawAxis(pen, at, height, colour) {
    const step = nice((this._to - this._from) / Math.max(2, this._width() / 90));
    pen.textAlign = "center";
    for (let tick = Math.ceil(this._from / step) * step; tick <= this._to; tick += step) {
      pen.fillStyle = colour("--line");
      pen.fillRect(Math.round(at(tick)), 0, 1, height - AXIS + 4);
      pen.fillStyle = colour("--faint");
      pen.fillText(`${Number(tick.toFixed(3))} s`, at(tick), height - AXIS / 2 + 2);
    }
  }
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Span} span
 * @param {(time: number) => number} at
 * @param {number} top
 * @param {number} width
 * @param {(name: string) => string} colour
 */
function drawSpan(pen, span, at, top, width, colour) {
  const left = Math.max(GUTTER, at(span.start_s));
  const right = Math.min(width, at(span.end_s));
  if (right < GUTTER || left > width || right <= left) return;
  const thin = span.kind === "waiting";
  const kind = span.kind === "exposed_append" ? "exposed" : span.kind;
  pen.fillStyle = colour(`--${kind}`);
  const tall = thin ? 3 : ROW - 6;
  // A gap keeps appends apart that follow each other at once.
  const wide = Math.max(1, right - left - (right - left > 4 ? 1 : 0));
  pen.globalAlpha = span.unfinished ? 0.7 : 1;
  pen.fillRect(left, top + (ROW - tall) / 2, wide, tall);
  pen.globalAlpha = 1;
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {number} x
 * @param {number} bottom
 * @param {number} tall
 * @param {string} colour
 */
function drawMark(pen, x, bottom, tall, colour) {
  if (x < GUTTER) return;
  pen.strokeStyle = colour;
  pen.setLineDash([4, 3]);
  pen.beginPath();
  pen.moveTo(x, bottom - tall);
  pen.lineTo(x, bottom);
  pen.stroke();
  pen.setLineDash([]);
}

/** @param {number} least a step of 1, 2 or 5 times a power of ten, not less than this */
function nice(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= least) ?? 10 * power;
}

/** @param {string} name */
function short(name) {
  return name.length > 13 ? `${name.slice(0, 12)}…` : name;
}
