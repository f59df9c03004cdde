/** Markdown and mathematics as elements. Whose text it is does not matter: elements and attributes are those named here,
 * and all that a text says is in text nodes and in addresses of the web. */

import { element, mathematics } from "./dom.js";
import { blocks } from "./markdown.js";
import { formula } from "./tex.js";

/** @typedef {import("./inline.js").Inline} Inline */
/** @typedef {import("./markdown.js").Block} Block */
/** @typedef {import("./tex.js").MathNode} MathNode */

/** A longer piece without an empty line in it is shown as it is: drawing it would take too long. */
export const LONGEST = 30000;

/**
 * @param {string} text
 * @returns {HTMLElement}
 */
export function formatted(text) {
  return element("div", { class: "block formatted" }, ...blocks(text).map(block));
}

/** @param {Block} shown @returns {HTMLElement} */
function block(shown) {
  switch (shown.kind) {
    case "paragraph":
      return element("p", {}, ...inlines(shown.children));
    case "heading":
      // Those of the page itself come first.
      return element(`h${Math.min(shown.level + 3, 6)}`, { data: { level: shown.level } }, ...inlines(shown.children));
    case "code":
      return element("pre", { tabindex: 0, data: { language: shown.language || null } }, element("code", {}, shown.text));
    case "math":
      return element("p", {}, math(shown.text, shown.source, true));
    case "quote":
      return element("blockquote", {}, ...shown.blocks.map(block));
    case "list":
      return element(
        shown.start === null ? "ul" : "ol",
        { start: shown.start },
        ...shown.items.map((item) => element("li", {}, ...item.flatMap((each) => ofItem(each, shown.tight)))),
      );
    case "table":
      return table(shown);
    case "rule":
      return element("hr");
  }
}

/** @param {Block} shown @param {boolean} tight @returns {Node[]} */
function ofItem(shown, tight) {
  return tight && shown.kind === "paragraph" ? inlines(shown.children) : [block(shown)];
}

/** @param {Extract<Block, {kind: "table"}>} shown */
function table({ align, head, rows }) {
  /** @param {string} tag @param {Inline[][]} cells */
  const row = (tag, cells) =>
    element("tr", {}, ...cells.map((cell, at) => element(tag, { data: { align: align[at] } }, ...inlines(cell))));
  return element(
    "div",
    { class: "scrolls", tabindex: 0 },
    element("table", {}, element("thead", {}, row("th", head)), element("tbody", {}, ...rows.map((each) => row("td", each)))),
  );
}

/** @param {Inline[]} shown @param {boolean} [linked] inside a link, where another would be none @returns {Node[]} */
function inlines(shown, linked = false) {
  return shown.map((each) => inline(each, linked));
}

/** @param {Inline} shown @param {boolean} linked @returns {Node} */
function inline(shown, linked) {
  switch (shown.kind) {
    case "text":
      return document.createTextNode(shown.text);
    case "code":
      return element("code", {}, shown.text);
    case "math":
      return math(shown.text, shown.source, shown.display);
    case "link":
      if (linked) return element("span", {}, ...inlines(shown.children, true));
      return element(
        "a",
        // The title says where it leads, whatever its text says.
        { href: shown.url, title: shown.url, target: "_blank", rel: "noopener noreferrer" },
        ...inlines(shown.children, true),
      );
    default:
      return element(shown.kind, {}, ...inlines(shown.children, linked));
  }
}

/**
 * A formula; as it is written, if it has what is not known here.
 * @param {string} text
 * @param {string} source with what begins and ends it
 * @param {boolean} display in a line of its own
 * @returns {Element}
 */
function math(text, source, display) {
  const known = formula(text);
  if (known === null) return element("code", { class: "tex" }, source);
  return mathematics("math", { display: display ? "block" : "inline" }, ...known.map(mathNode));
}

/** @param {MathNode} shown @returns {Element} */
function mathNode({ tag, attributes, text, children }) {
  return mathematics(tag, attributes ?? {}, ...(text === undefined ? (children ?? []).map(mathNode) : [text]));
}
