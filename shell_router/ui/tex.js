/** Mathematics as TeX writes it, read into what MathML calls it. A useful part of it: what else there is has no tree, and
 * is shown as it is written. Nothing here makes elements. */

import { ACCENTS, BLACKBOARD, FUNCTIONS, LARGE, LIMITS, SPACES, SYMBOLS, UNSEEN } from "./tex_symbols.js";

/** @typedef {{tag: string, attributes?: Object<string, string | null>, text?: string, children?: MathNode[]}} MathNode */

const LONGEST = 5000;
/** Deepest nesting. */
const DEEPEST = 40;
/** A command, a number, white space, or one character, which may be one of two code units. */
const TOKEN = /\\(?:[a-zA-Z]+\*?|[^])|\d+(?:[.,]\d+)*|\s+|[^]/gu;
const LETTER = /\p{L}/u;
const FRACTIONS = ["\\frac", "\\dfrac", "\\tfrac", "\\cfrac"];
const NAMES = ["\\mathrm", "\\operatorname", "\\operatorname*"];
/** Words, and the class of their look. @type {Object<string, string | null>} */
const TEXTS = { "\\text": null, "\\textrm": null, "\\mbox": null, "\\textbf": "bold", "\\textit": "italic" };
const STYLES = /** @type {Object<string, string>} */ ({ "\\mathbf": "bold", "\\boldsymbol": "bold", "\\bm": "bold" });
/** Brackets around the rows of an environment, and how its columns stand. @type {Object<string, [string, string, string]>} */
const ENVIRONMENTS = {
  matrix: ["", "", "center"],
  pmatrix: ["(", ")", "center"],
  bmatrix: ["[", "]", "center"],
  Bmatrix: ["{", "}", "center"],
  vmatrix: ["|", "|", "center"],
  cases: ["{", "", "left"],
  array: ["", "", "center"],
  aligned: ["", "", "aligned"],
  align: ["", "", "aligned"],
  "align*": ["", "", "aligned"],
  split: ["", "", "aligned"],
  gathered: ["", "", "center"],
  equation: ["", "", "center"],
  "equation*": ["", "", "center"],
};

/** There is something in a formula that is not known here. */
class Unknown extends Error {}

/**
 * @param {string} source without its dollars
 * @returns {MathNode[] | null} null for what is not known, or has no end
 */
export function formula(source) {
  if (source.length > LONGEST) return null;
  try {
    return new Formula(source.match(TOKEN) ?? []).whole();
  } catch (error) {
    if (!(error instanceof Unknown)) throw error;
    return null;
  }
}

class Formula {
  /** @param {string[]} tokens */
  constructor(tokens) {
    this._tokens = tokens;
    this._at = 0;
    this._depth = 0;
  }

  whole() {
    const rows = this._rows("");
    return rows.length === 1 && rows[0].length === 1 ? rows[0][0] : [table(rows, "aligned")];
  }

  /** Cells of rows, up to this token. @param {string} end  @returns {MathNode[][][]} */
  _rows(end) {
    /** @type {MathNode[][][]} */
    const rows = [[]];
    for (;;) {
      rows[rows.length - 1].push(this._sequence(["&", "\\\\", end]));
      const next = this._take();
      if (next === "\\\\") rows.push([]);
      else if (next === end) break;
    }
    // After the last row there may be an end of a line, too.
    const last = rows[rows.length - 1];
    if (rows.length > 1 && last.length === 1 && last[0].length === 0) rows.pop();
    return rows;
  }

  /** What stands before one of these tokens. @param {string[]} ends */
  _sequence(ends) {
    if ((this._depth += 1) > DEEPEST) throw new Unknown();
    /** @type {MathNode[]} */
    const found = [];
    for (let next; !ends.includes((next = this._peek())); ) {
      if (next === "") throw new Unknown();
      found.push(...this._scripted());
    }
    this._depth -= 1;
    return found;
  }

  /** The next token that is no white space; "" at the end. */
  _peek() {
    while (this._at < this._tokens.length && this._tokens[this._at].trim() === "") this._at += 1;
    return this._tokens[this._at] ?? "";
  }

  _take() {
    const token = this._peek();
    this._at += 1;
    return token;
  }

  /** Something with what stands above and below it. @returns {MathNode[]} */
  _scripted() {
    const first = this._peek();
    const base = "^_'".includes(first) ? [node("mrow", [])] : this._atom();
    /** @type {Object<string, MathNode | undefined>} */
    const scripts = {};
    let around = LIMITS.includes(first) || (Object.hasOwn(LARGE, first) && !first.endsWith("int"));
    for (let next; ["^", "_", "'", "\\limits", "\\nolimits"].includes((next = this._peek())); ) {
      this._at += 1;
      if (next === "\\limits" || next === "\\nolimits") around = next === "\\limits";
      else {
        const place = next === "_" ? "below" : "above";
        if (scripts[place] !== undefined) throw new Unknown();
        scripts[place] = next === "'" ? this._primes() : this._argument();
      }
    }
    const { above, below } = scripts;
    if (above === undefined && below === undefined) return base;
    const parts = [row(base), ...(below ? [below] : []), ...(above ? [above] : [])];
    const names = around ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
    return [node(names[parts.length === 3 ? 2 : below ? 0 : 1], parts)];
  }

  _primes() {
    let count = 1;
    for (; this._peek() === "'"; this._at += 1) count += 1;
    const primes = leaf("mo", "′".repeat(count));
    if (this._peek() !== "^") return primes;
    this._at += 1;
    return node("mrow", [primes, this._argument()]);
  }

  /** What a command is given: a group, or one thing. @returns {MathNode} */
  _argument() {
    if (this._peek() === "{") return row(this._group());
    // Of a number only its first digit, as TeX has it.
    const next = this._peek();
    if (/^\d./.test(next)) this._tokens.splice(this._at, 1, next[0], next.slice(1));
    if ((this._depth += 1) > DEEPEST) throw new Unknown();
    const found = row(this._atom());
    this._depth -= 1;
    return found;
  }

  /** @returns {MathNode[]} */
  _group() {
    this._expect("{");
    const found = this._sequence(["}"]);
    this._at += 1;
    return found;
  }

  /** @param {string} token */
  _expect(token) {
    if (this._take() !== token) throw new Unknown();
  }

  /** A group as it is written. @returns {string} */
  _words() {
    this._expect("{");
    let said = "";
    for (let open = 1; ; this._at += 1) {
      const token = this._tokens[this._at];
      if (token === undefined) throw new Unknown();
      if (token === "{") open += 1;
      else if (token === "}" && (open -= 1) === 0) break;
      else if (token === "\\ " || token === "~") said += " ";
      else if (/^\\[%$#&_{}]$/.test(token)) said += token[1];
      else if (token[0] === "\\" || token === "$") throw new Unknown();
      else said += token;
    }
    this._at += 1;
    return said;
  }

  /** @returns {MathNode[]} */
  _atom() {
    const token = this._take();
    if (token === "{") {
      this._at -= 1;
      return [row(this._group())];
    }
    if (token[0] === "\\") return this._command(token);
    if (/^\d/.test(token)) return [leaf("mn", token)];
    if (token === "~") return [space("0.25em")];
    if (token === "-") return [leaf("mo", "−")];
    if (token === "" || "}&^_#$".includes(token)) throw new Unknown();
    return [leaf(LETTER.test(token) ? "mi" : "mo", token, "()[]|".includes(token) ? { stretchy: "false" } : undefined)];
  }

  /** @param {string} name @returns {MathNode[]} */
  _command(name) {
    if (Object.hasOwn(SYMBOLS, name)) return [leaf(LETTER.test(SYMBOLS[name]) ? "mi" : "mo", SYMBOLS[name])];
    if (Object.hasOwn(LARGE, name)) {
      return [leaf("mo", LARGE[name], { largeop: "true", movablelimits: "true" })];
    }
    if (FUNCTIONS.includes(name)) return [leaf("mi", name.slice(1))];
    if (LIMITS.includes(name)) return [leaf("mo", name.slice(1), { movablelimits: "true" })];
    if (Object.hasOwn(SPACES, name)) return [space(SPACES[name])];
    if (UNSEEN.includes(name)) return [];
    if (Object.hasOwn(ACCENTS, name)) {
      const [tag, sign] = ACCENTS[name];
      return [node(tag, [this._argument(), leaf("mo", sign)], { accent: "true" })];
    }
    if (Object.hasOwn(STYLES, name)) return [node("mrow", [this._argument()], { class: STYLES[name] })];
    if (FRACTIONS.includes(name)) return [node("mfrac", [this._argument(), this._argument()])];
    if (Object.hasOwn(TEXTS, name)) {
      // MathML takes away spaces at the ends.
      return [leaf("mtext", this._words().replaceAll(" ", "\u00a0"), { class: TEXTS[name] })];
    }
    if (NAMES.includes(name)) return [leaf("mi", this._words(), { mathvariant: "normal" })];
    return this._construct(name);
  }

  /** @param {string} name @returns {MathNode[]} */
  _construct(name) {
    switch (name) {
      case "\\sqrt":
        return this._root();
      case "\\boxed":
      case "\\fbox":
        return [node("mrow", [this._argument()], { class: "boxed" })];
      case "\\binom": {
        const pair = node("mfrac", [this._argument(), this._argument()], { linethickness: "0" });
        return [node("mrow", [leaf("mo", "("), pair, leaf("mo", ")")])];
      }
      case "\\mathbb":
        return [leaf("mi", [...this._words()].map((letter) => BLACKBOARD[letter] ?? letter).join(""))];
      case "\\mathcal":
      case "\\mathit":
        return [this._argument()];
      case "\\overset":
      case "\\stackrel":
        return [turned("mover", this._argument(), this._argument())];
      case "\\underset":
        return [turned("munder", this._argument(), this._argument())];
      case "\\pmod":
        return [space("0.5em"), leaf("mo", "("), leaf("mi", "mod"), space("0.3em"), this._argument(), leaf("mo", ")")];
      case "\\not":
        return [leaf("mo", `${this._atom()[0]?.text ?? ""}\u0338`)];
      case "\\left":
        return this._fenced();
      case "\\begin":
        return this._environment();
      default:
        // Sizes of brackets: a bracket follows.
        if (/^\\[bB]igg?[lrm]?$/.test(name)) return [leaf("mo", this._bracket())];
        throw new Unknown();
    }
  }

  /** @returns {MathNode[]} */
  _root() {
    if (this._peek() !== "[") return [node("msqrt", [this._argument()])];
    this._at += 1;
    const degree = row(this._sequence(["]"]));
    this._at += 1;
    return [node("mroot", [this._argument(), degree])];
  }

  /** @returns {MathNode[]} */
  _fenced() {
    const opening = this._bracket();
    const inside = this._sequence(["\\right"]);
    this._at += 1;
    return [node("mrow", [...bracket(opening), ...inside, ...bracket(this._bracket())])];
  }

  /** @returns {string} "" for none */
  _bracket() {
    const token = this._take();
    if (token === ".") return "";
    if (token.length === 1 && "()[]|/<>".includes(token)) return token;
    if (token[0] === "\\" && Object.hasOwn(SYMBOLS, token)) return SYMBOLS[token];
    throw new Unknown();
  }

  /** @returns {MathNode[]} */
  _environment() {
    const name = this._words();
    if (!Object.hasOwn(ENVIRONMENTS, name)) throw new Unknown();
    const [opening, closing, columns] = ENVIRONMENTS[name];
    // How columns stand is said in a group, which is let go.
    if (name === "array") this._words();
    if ((this._depth += 1) > DEEPEST) throw new Unknown();
    const rows = this._rows("\\end");
    this._depth -= 1;
    if (this._words() !== name) throw new Unknown();
    return [node("mrow", [...bracket(opening), table(rows, columns), ...bracket(closing)])];
  }
}

/** @param {string} tag @param {string} text @param {Object<string, string | null>} [attributes] @returns {MathNode} */
function leaf(tag, text, attributes) {
  return { tag, text, attributes };
}

/** @param {string} tag @param {MathNode[]} children @param {Object<string, string | null>} [attributes] @returns {MathNode} */
function node(tag, children, attributes) {
  return { tag, children, attributes };
}

/** One node of many. @param {MathNode[]} nodes @returns {MathNode} */
function row(nodes) {
  return nodes.length === 1 ? nodes[0] : node("mrow", nodes);
}

/** @param {string} width @returns {MathNode} */
function space(width) {
  return node("mspace", [], { width });
}

/** @param {string} sign @returns {MathNode[]} */
function bracket(sign) {
  return sign === "" ? [] : [leaf("mo", sign, { fence: "true", stretchy: "true" })];
}

/** What stands above or below is named first. @param {string} tag @param {MathNode} around @param {MathNode} base */
function turned(tag, around, base) {
  return node(tag, [base, around]);
}

/** @param {MathNode[][][]} rows @param {string} columns @returns {MathNode} */
function table(rows, columns) {
  const made = rows.map((cells) => node("mtr", cells.map((cell) => node("mtd", cell))));
  return node("mtable", made, { class: columns });
}
