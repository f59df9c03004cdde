/** What a line of Markdown says: emphasis, code, links, mathematics. A tree of plain objects; nothing here makes
 * elements. Every search goes forward only, so that hostile text takes no longer than other text. */

import { webAddress } from "./web_address.js";

/** @typedef {{kind: "text" | "code", text: string}
 *   | {kind: "math", text: string, source: string, display: boolean}
 *   | {kind: "link", url: string, children: Inline[]}
 *   | {kind: "em" | "strong" | "del", children: Inline[]}} Inline */
/** @typedef {{at: number, mark: string, count: number, opens: boolean, closes: boolean}} Run a run of marks that may be emphasis
 */

/** Deepest nesting. What is deeper is shown as it is written. */
const DEEPEST = 24;
const LONGEST_URL = 2000;
/** Mathematics between single dollars is short: two prices on one page are none. */
const LONGEST_DOLLARS = 1000;
/** Up to the next character that may mean something. */
const PLAIN = /[^\\`$*_~[\]!<h]+/y;
const SPACE = /\s/;
const WORD = /[\p{L}\p{N}]/u;
const ESCAPED = /[!-/:-@[-`{-~]/;
const BARE_URL = /https?:\/\/[^\s<>"'`*\\]+/y;
/** What follows the text of a link. Of spaces only a few: any number could be taken apart in many ways. */
const TARGET =
  /\( {0,3}(?:<([^<>\n]*)>|([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)?))(?: {1,3}(?:"[^"\n]*"|'[^'\n]*'))? {0,3}\)/y;
/** @type {[string, string, boolean][]} how mathematics begins, how it ends, whether it stands by itself */
const MATH = [
  ["$$", "$$", true],
  ["\\[", "\\]", true],
  ["\\(", "\\)", false],
];

/**
 * @param {string} text
 * @returns {Inline[]}
 */
export function inlines(text) {
  return new Inlines(text).all();
}

/** Finds one pattern in one text, from left to right. */
class Finder {
  /** @param {string} text @param {RegExp} pattern with the flag `g` */
  constructor(text, pattern) {
    this._text = text;
    this._pattern = pattern;
    this._found = -1;
  }

  /** @param {number} from never less than before  @returns {number} where it is next; Infinity if nowhere */
  next(from) {
    if (this._found < from) {
      this._pattern.lastIndex = from;
      this._found = this._pattern.exec(this._text)?.index ?? Infinity;
    }
    return this._found;
  }
}

class Inlines {
  /** @param {string} text */
  constructor(text) {
    this._text = text;
    this._at = 0;
    /** What has been read: nodes, and runs of marks and brackets of which it is not known yet what they are.
     * @type {(Inline | Run | {bracket: string})[]} */
    this._pieces = [];
    /** Where in the pieces there are runs that may open emphasis, by their mark.  @type {Map<string, number[]>} */
    this._openers = new Map();
    /** Where there are open brackets.  @type {number[]} */
    this._brackets = [];
    this._finders = /** @type {Map<string, Finder>} */ (new Map());
  }

  all() {
    while (this._at < this._text.length) this._one();
    return this._settled(0);
  }

  _one() {
    const text = this._text;
    const sign = text[this._at];
    if (sign === "\\" || sign === "$") {
      if (this._math()) return;
      const next = text[this._at + 1] ?? "";
      if (sign === "\\" && (ESCAPED.test(next) || next === "\n")) this._say(next, 2);
      else this._say(sign, 1);
    } else if (sign === "`") this._code();
    else if (sign === "*" || sign === "_" || sign === "~") this._marks(sign);
    else if (sign === "[" || (sign === "!" && text[this._at + 1] === "[")) this._open(sign === "[" ? "[" : "![");
    else if (sign === "]") this._close();
    else if (sign === "h") this._address();
    else if (!this._plain()) this._say(sign, 1);
  }

  /** Text without meaning. @returns {boolean} */
  _plain() {
    PLAIN.lastIndex = this._at;
    const found = PLAIN.exec(this._text);
    if (found !== null) this._say(found[0], found[0].length);
    return found !== null;
  }

  /** @param {string} shown @param {number} length of what stands for it in the text */
  _say(shown, length) {
    const last = this._pieces[this._pieces.length - 1];
    if (last !== undefined && "kind" in last && last.kind === "text") last.text += shown;
    else this._pieces.push({ kind: "text", text: shown });
    this._at += length;
  }

  /** @param {string} name @param {string} pattern @param {number} from */
  _find(name, pattern, from) {
    let finder = this._finders.get(name);
    if (finder === undefined) this._finders.set(name, (finder = new Finder(this._text, new RegExp(pattern, "gu"))));
    return finder.next(from);
  }

  /** @returns {boolean} */
  _math() {
    for (const [opening, closing, display] of MATH) {
      if (!this._text.startsWith(opening, this._at)) continue;
      const from = this._at + opening.length;
      const end = this._find(closing, closing.replace(/[$\\()[\]]/g, "\\$&"), from);
      return end < Infinity && this._formula(from, end, closing.length, display);
    }
    const before = this._text[this._at - 1] ?? "";
    const from = this._at + 1;
    if (this._text[this._at] !== "$" || WORD.test(before) || SPACE.test(this._text[from] ?? " ")) return false;
    // As in Pandoc: no space before the end and no digit behind it, which are two prices.
    const end = this._find("$", "(?<![\\s\\\\])\\$(?![\\p{L}\\p{N}$])", from + 1);
    return end - from <= LONGEST_DOLLARS && this._formula(from, end, 1, false);
  }

  /** @param {number} from @param {number} end @param {number} closing its length @param {boolean} display */
  _formula(from, end, closing, display) {
    const text = this._text.slice(from, end).trim();
    if (text === "") return false;
    const source = this._text.slice(this._at, end + closing);
    this._pieces.push({ kind: "math", text, source, display });
    this._at = end + closing;
    return true;
  }

  _code() {
    let count = 1;
    while (this._text[this._at + count] === "`") count += 1;
    const from = this._at + count;
    const end = this._find(`code ${count}`, `(?<!\`)\`{${count}}(?!\`)`, from);
    if (end === Infinity) {
      this._say("`".repeat(count), count);
      return;
    }
    const inside = this._text.slice(from, end).replaceAll("\n", " ");
    // A space on either side is there to keep backticks apart.
    const padded = inside.length > 2 && inside.startsWith(" ") && inside.endsWith(" ") && inside.trim() !== "";
    this._pieces.push({ kind: "code", text: padded ? inside.slice(1, -1) : inside });
    this._at = end + count;
  }

  /** @param {string} mark */
  _marks(mark) {
    const start = this._at;
    while (this._text[this._at] === mark) this._at += 1;
    const count = this._at - start;
    const before = this._text[start - 1] ?? " ";
    const after = this._text[this._at] ?? " ";
    const inWord = WORD.test(before) && WORD.test(after) && (mark === "_" || count === 1);
    const opens = !SPACE.test(after) && !inWord;
    const closes = !SPACE.test(before) && !inWord;
    const usable = mark === "~" ? count === 2 : count <= 3;
    /** @type {Run} */
    const run = { at: start, mark, count, opens: opens && usable, closes: closes && usable };
    if (run.closes) this._emphasise(run);
    if (run.count === 0) return;
    this._pieces.push(run);
    const openers = this._openers.get(mark) ?? [];
    this._openers.set(mark, openers);
    if (run.opens) pushed(openers, this._pieces.length - 1);
  }

  /** Close what this run can close. @param {Run} run */
  _emphasise(run) {
    const openers = this._openers.get(run.mark) ?? [];
    while (run.count > 0 && openers.length > 0) {
      const at = openers[openers.length - 1];
      const opener = /** @type {Run} */ (this._pieces[at]);
      const used = run.count >= 2 && opener.count >= 2 ? 2 : 1;
      const children = this._settled(at + 1);
      // What was opened inside is text now; an outer one goes on.
      for (const each of this._openers.values()) while (each.length > 0 && each[each.length - 1] > at) each.pop();
      while (this._brackets.length > 0 && this._brackets[this._brackets.length - 1] > at) this._brackets.pop();
      opener.count -= used;
      run.count -= used;
      if (opener.count === 0) {
        this._pieces.pop();
        openers.pop();
      }
      const kind = run.mark === "~" ? "del" : used === 2 ? "strong" : "em";
      if (children.length > 0) this._pieces.push({ kind, children });
    }
  }

  /** @param {string} bracket */
  _open(bracket) {
    this._pieces.push({ bracket });
    pushed(this._brackets, this._pieces.length - 1);
    this._at += bracket.length;
  }

  /** A bracket closes. It makes a link where an address of the web follows, and text otherwise. */
  _close() {
    const opened = this._brackets.pop();
    TARGET.lastIndex = this._at + 1;
    const target = opened === undefined ? null : TARGET.exec(this._text);
    const url = target === null || target[0].length > LONGEST_URL ? null : webAddress(target[1] ?? target[2]);
    if (opened === undefined || target === null || url === null) {
      this._say("]", 1);
      return;
    }
    const children = this._settled(opened + 1);
    this._pieces.pop();
    for (const each of this._openers.values()) while (each.length > 0 && each[each.length - 1] >= opened) each.pop();
    this._pieces.push({ kind: "link", url, children: children.length > 0 ? children : [text(url)] });
    this._at += 1 + target[0].length;
  }

  /** An address that stands there as such. */
  _address() {
    BARE_URL.lastIndex = this._at;
    const found = WORD.test(this._text[this._at - 1] ?? " ") ? null : BARE_URL.exec(this._text);
    const shown = found === null ? "" : withoutEnd(found[0]);
    const url = shown === "" || shown.length > LONGEST_URL ? null : webAddress(shown);
    if (url === null) {
      // Not letter by letter: what follows would be looked at again from each.
      this._say(found?.[0] ?? "h", found?.[0].length ?? 1);
      return;
    }
    this._pieces.push({ kind: "link", url, children: [text(shown)] });
    this._at += shown.length;
  }

  /**
   * Takes away the pieces from `from` on: what has found no end is text.
   * @param {number} from
   * @returns {Inline[]}
   */
  _settled(from) {
    /** @type {Inline[]} */
    const settled = [];
    for (const piece of this._pieces.splice(from)) {
      const node = "kind" in piece ? piece : text("bracket" in piece ? piece.bracket : piece.mark.repeat(piece.count));
      const last = settled[settled.length - 1];
      if (node.kind === "text" && last?.kind === "text") last.text += node.text;
      else settled.push(node);
    }
    return settled;
  }
}

/** Note one more that is open; the first one is given up when there are too many. @param {number[]} open @param {number} at */
function pushed(open, at) {
  open.push(at);
  if (open.length > DEEPEST) open.shift();
}

/** @param {string} said @returns {{kind: "text", text: string}} */
function text(said) {
  return { kind: "text", text: said };
}

/** An address without what ends the sentence it stands in. @param {string} address */
function withoutEnd(address) {
  let end = address.length;
  while (end > 0 && ".,;:!?_~|".includes(address[end - 1])) end -= 1;
  // A bracket belongs to it that was opened in it.
  if (address[end - 1] === ")" && !address.slice(0, end).includes("(")) end -= 1;
  if (address[end - 1] === "]") end -= 1;
  return address.slice(0, end);
}
