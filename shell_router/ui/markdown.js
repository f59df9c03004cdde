/** The blocks of a Markdown text: headings, lists, tables, code, quotes, mathematics. A tree of plain objects; what it
 * does not know, HTML too, is text. No text takes more than a bounded time for each of its characters. */

import { inlines } from "./inline.js";

/** @typedef {import("./inline.js").Inline} Inline */
/** @typedef {"left" | "center" | "right" | null} Align */
/** @typedef {{kind: "paragraph", children: Inline[]}
 *   | {kind: "heading", level: number, children: Inline[]}
 *   | {kind: "code", language: string, text: string}
 *   | {kind: "math", text: string, source: string}
 *   | {kind: "quote", blocks: Block[]}
 *   | {kind: "list", start: number | null, tight: boolean, items: Block[][]}
 *   | {kind: "table", align: Align[], head: Inline[][], rows: Inline[][][]}
 *   | {kind: "rule"}} Block */

/** Deepest nesting of quotes and lists. What is deeper is shown as it is written. */
const DEEPEST = 10;
const MOST_COLUMNS = 64;
/** A fence of code: spaces, marks, language. */
const FENCE = /^( {0,3})(`{3,}|~{3,}) *([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?: |$)/;
const ITEM = /^( {0,3})(?:([-*+])|(\d{1,9})[.)])( {1,4}|$)/;
const QUOTE = /^ {0,3}> ?/;
const CELL = /^:?-+:?$/;
/** @type {[string, string][]} how mathematics of several lines begins and ends */
const MATH = [
  ["$$", "$$"],
  ["\\[", "\\]"],
];
/** Most lines of it: what is longer has lost its end. */
const LONGEST_MATH = 200;

/**
 * @param {string} text
 * @returns {Block[]}
 */
export function blocks(text) {
  return new Blocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"), 0).all();
}

/** Where a text may be taken apart, so that its beginning is drawn while it goes on. */
export class Segments {
  constructor() {
    /** Where the open segment begins. */
    this.from = 0;
    this._at = 0;
    this._blank = false;
    /** The code or the mathematics that is open. @type {Opened | null} */
    this._opened = null;
  }

  /**
   * The segments that have become whole: an empty line ends one, outside of code, mathematics and lists.
   * @param {string} text what it was before, and more
   * @returns {string[]}
   */
  take(text) {
    const whole = [];
    for (let end; (end = text.indexOf("\n", this._at)) !== -1; this._at = end + 1) {
      const line = text.slice(this._at, end);
      if (this._opened !== null && this._opened.left > 0) {
        this._opened.left -= 1;
        if (this._opened.ends(line)) this._opened = null;
        continue;
      }
      if (line.trim() === "") {
        this._blank = true;
        continue;
      }
      if (this._blank && line[0] !== " " && line[0] !== "\t" && !ITEM.test(line)) {
        whole.push(text.slice(this.from, this._at));
        this.from = this._at;
      }
      this._blank = false;
      this._opened = openedBy(line);
    }
    return whole;
  }
}

/** @typedef {{ends: (line: string) => boolean, left: number}} Opened which line ends it, and how many may come */

/**
 * The code or the mathematics that this line begins.
 * @param {string} line
 * @returns {Opened | null}
 */
function openedBy(line) {
  const fence = FENCE.exec(line.trimStart());
  if (fence !== null) return { ends: (each) => isEnd(each, fence[2]), left: Infinity };
  const math = mathOf(line);
  return math === null ? null : { ends: (each) => each.trimEnd().endsWith(math[1]), left: LONGEST_MATH };
}

/** Whether this line ends code that began with these marks. @param {string} line @param {string} marks */
function isEnd(line, marks) {
  const said = line.trim();
  return said.length >= marks.length && said === marks[0].repeat(said.length);
}

/** The marks of mathematics that begins in this line and does not end in it. @param {string} line */
function mathOf(line) {
  const said = line.trim();
  return MATH.find(([opening, end]) => said.startsWith(opening) && said.indexOf(end, opening.length) === -1) ?? null;
}

class Blocks {
  /** @param {string[]} lines @param {number} depth */
  constructor(lines, depth) {
    this._lines = lines;
    this._depth = depth;
    this._at = 0;
    /** By what ends it, the next line that ends mathematics. @type {Map<string, number>} */
    this._ends = new Map();
  }

  all() {
    /** @type {Block[]} */
    const found = [];
    while (this._at < this._lines.length) {
      if (this._lines[this._at].trim() === "") this._at += 1;
      else found.push(this._block() ?? this._paragraph());
    }
    return found;
  }

  /** What begins at this line; null for a paragraph. @returns {Block | null} */
  _block() {
    const line = this._lines[this._at];
    const fence = FENCE.exec(line);
    if (fence !== null) return this._code(fence);
    const heading = HEADING.exec(line);
    if (heading !== null) {
      this._at += 1;
      return { kind: "heading", level: heading[1].length, children: inlines(title(line.slice(heading[0].length))) };
    }
    if (isRule(line)) {
      this._at += 1;
      return { kind: "rule" };
    }
    if (this._depth < DEEPEST) {
      if (QUOTE.test(line)) return this._quote();
      if (ITEM.test(line)) return this._list();
    }
    return this._math() ?? this._table();
  }

  /** @param {RegExpExecArray} fence @returns {Block} */
  _code([, indent, marks, language]) {
    const from = (this._at += 1);
    while (this._at < this._lines.length && !isEnd(this._lines[this._at], marks)) this._at += 1;
    const inside = this._lines.slice(from, this._at);
    // Without an end it goes on to the end of the text.
    this._at += 1;
    const text = inside.map((line) => (line.startsWith(indent) ? line.slice(indent.length) : line.trimStart()));
    return { kind: "code", language, text: text.join("\n") };
  }

  /** @returns {Block | null} */
  _math() {
    const math = mathOf(this._lines[this._at]);
    if (math === null) return null;
    const end = this._end(math[1]);
    if (end - this._at > LONGEST_MATH) return null;
    const source = this._lines.slice(this._at, end + 1).join("\n").trim();
    this._at = end + 1;
    return { kind: "math", text: source.slice(math[0].length, -math[1].length).trim(), source };
  }

  /** The next line behind this one that ends so; Infinity if none does. @param {string} mark */
  _end(mark) {
    const known = this._ends.get(mark) ?? 0;
    if (known > this._at) return known;
    let end = this._at + 1;
    while (end < this._lines.length && !this._lines[end].trimEnd().endsWith(mark)) end += 1;
    if (end === this._lines.length) end = Infinity;
    this._ends.set(mark, end);
    return end;
  }

  /** @returns {Block} */
  _quote() {
    const inside = [];
    for (; this._at < this._lines.length; this._at += 1) {
      const line = this._lines[this._at];
      const mark = QUOTE.exec(line);
      // A paragraph in it may go on without the mark.
      if (mark === null && (line.trim() === "" || this._interrupts(this._at))) break;
      inside.push(mark === null ? line : line.slice(mark[0].length));
    }
    return { kind: "quote", blocks: new Blocks(inside, this._depth + 1).all() };
  }

  /** @returns {Block} */
  _list() {
    const first = /** @type {RegExpExecArray} */ (ITEM.exec(this._lines[this._at]));
    const items = [];
    let tight = true;
    while (this._at < this._lines.length) {
      const mark = ITEM.exec(this._lines[this._at]);
      if (mark === null || mark[2] !== first[2] || isRule(this._lines[this._at])) break;
      const { inside, apart } = this._item(mark);
      items.push(new Blocks(inside, this._depth + 1).all());
      const next = this._lines[this._at] === undefined ? null : ITEM.exec(this._lines[this._at]);
      if (apart && next !== null && next[2] === first[2]) tight = false;
      if (inside.some((line, number) => line === "" && number < inside.length - 1)) tight = false;
    }
    return { kind: "list", start: first[3] === undefined ? null : Number(first[3]), tight, items };
  }

  /** The lines of one item, and whether an empty one ends it. @param {RegExpExecArray} mark */
  _item(mark) {
    const width = mark[0].length + (mark[4] === "" ? 1 : 0);
    const inside = [this._lines[this._at].slice(mark[0].length)];
    let apart = false;
    for (this._at += 1; this._at < this._lines.length; this._at += 1) {
      const line = this._lines[this._at];
      if (line.trim() === "") {
        apart = true;
        inside.push("");
      } else if (line.startsWith(" ".repeat(width))) {
        inside.push(line.slice(width));
        apart = false;
      } else if (apart || ITEM.test(line) || this._interrupts(this._at)) break;
      else inside.push(line);
    }
    while (inside.length > 1 && inside[inside.length - 1] === "") inside.pop();
    return { inside, apart };
  }

  /** @returns {Block | null} */
  _table() {
    const align = this._aligned(this._at);
    if (align === null) return null;
    const head = cells(this._lines[this._at]).map(inlines);
    const rows = [];
    for (this._at += 2; this._at < this._lines.length; this._at += 1) {
      const line = this._lines[this._at];
      if (!line.includes("|") || this._interrupts(this._at)) break;
      rows.push(cells(line).slice(0, head.length).map(inlines));
    }
    return { kind: "table", align, head, rows };
  }

  /** How the columns of a table stand that begins at this line; null if none does. @param {number} at */
  _aligned(at) {
    const [line, below] = [this._lines[at], this._lines[at + 1]];
    if (below === undefined || !line.includes("|") || !below.includes("-")) return null;
    const ruled = cells(below);
    if (ruled.length > MOST_COLUMNS || !ruled.every((cell) => CELL.test(cell))) return null;
    if (cells(line).length !== ruled.length) return null;
    return ruled.map((cell) => {
      const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
      return /** @type {Align} */ (left && right ? "center" : right ? "right" : left ? "left" : null);
    });
  }

  /** @returns {Block} */
  _paragraph() {
    const from = this._at;
    for (this._at += 1; this._at < this._lines.length; this._at += 1) {
      if (this._lines[this._at].trim() === "" || this._interrupts(this._at)) break;
    }
    const said = this._lines.slice(from, this._at).map((line) => line.trim());
    return { kind: "paragraph", children: inlines(said.join("\n")) };
  }

  /** Whether another block begins here although a paragraph has not ended. @param {number} at */
  _interrupts(at) {
    const line = this._lines[at];
    const item = ITEM.exec(line);
    // A number may be one of a sentence, and an empty item a sign.
    if (item !== null && item[4] !== "" && (item[3] === undefined || item[3] === "1")) return true;
    return (
      FENCE.test(line) ||
      HEADING.test(line) ||
      isRule(line) ||
      QUOTE.test(line) ||
      mathOf(line) !== null ||
      this._aligned(at) !== null
    );
  }
}

/** @param {string} line */
function isRule(line) {
  const sign = line.trimStart()[0];
  if (sign !== "-" && sign !== "*" && sign !== "_") return false;
  const said = line.replaceAll(" ", "");
  return said.length >= 3 && said === sign.repeat(said.length);
}

/** A heading's text, without the marks that may close it. @param {string} line */
function title(line) {
  const said = line.trim();
  let end = said.length;
  while (end > 0 && said[end - 1] === "#") end -= 1;
  return end === 0 || said[end - 1] === " " ? said.slice(0, end).trim() : said;
}

/** The cells of a row of a table. @param {string} line */
function cells(line) {
  const found = [""];
  const said = line.trim();
  for (let at = said.startsWith("|") ? 1 : 0; at < said.length; at += 1) {
    if (said.startsWith("\\|", at)) found[found.length - 1] += said[(at += 1)];
    else if (said[at] === "|") found.push("");
    else found[found.length - 1] += said[at];
  }
  if (said.endsWith("|") && found.length > 1 && found[found.length - 1] === "") found.pop();
  return found.map((cell) => cell.trim());
}
