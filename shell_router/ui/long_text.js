/** A text that grows: white space as it is, and cheap to draw however long it becomes. */

import { element } from "./dom.js";

/** Characters of a block. Those out of sight are neither laid out nor painted (`content-visibility` in the style). */
const BLOCK = 4000;

export class LongText {
  /** @param {string} label what a screen reader calls it */
  constructor(label) {
    this.root = element("div", { class: "long-text", tabindex: 0, role: "region", "aria-label": label });
    this._shown = "";
    /** @type {Text | null} */
    this._last = null;
  }

  /**
   * Show this text. One that begins with what is shown is only added to.
   * @param {string} text
   */
  set(text) {
    if (text === this._shown) return;
    const follows = this._atEnd();
    if (!text.startsWith(this._shown)) {
      this.root.replaceChildren();
      this._last = null;
      this._shown = "";
    }
    this._add(text.slice(this._shown.length));
    this._shown = text;
    if (follows) this.root.scrollTop = this.root.scrollHeight;
  }

  /** Whether the reader is at the end, and so wants to see what comes. */
  _atEnd() {
    return this.root.scrollTop + this.root.clientHeight >= this.root.scrollHeight - 24;
  }

  /** @param {string} text */
  _add(text) {
    while (text !== "") {
      if (this._last === null) {
        this._last = document.createTextNode("");
        this.root.append(element("div", { class: "block" }, this._last));
      }
      // A block ends with a line: inside of one, a new block would break it.
      const full = text.indexOf("\n", Math.max(0, BLOCK - this._last.length));
      const end = full === -1 ? text.length : full + 1;
      this._last.appendData(text.slice(0, end));
      text = text.slice(end);
      if (full !== -1) this._last = null;
    }
  }
}
