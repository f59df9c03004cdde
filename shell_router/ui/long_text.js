/** Texts that grow: white space as it is, and cheap to draw however long they become. */

import { element } from "./dom.js";

/** Characters of a block. Those out of sight are neither laid out nor painted (`content-visibility` in the style). */
const BLOCK = 4000;

/** A place that scrolls, and stays at its end while what is in it grows. */
export class Scroller {
  /** @param {string} label what a screen reader calls it @param {Element} inside */
  constructor(label, inside) {
    this.root = element("div", { class: "long-text", tabindex: 0, role: "region", "aria-label": label }, inside);
  }

  /** @param {() => void} change of what is in it */
  grow(change) {
    // Whether the reader is at the end, and so wants to see what comes.
    const follows = this.root.scrollTop + this.root.clientHeight >= this.root.scrollHeight - 24;
    change();
    if (follows) this.root.scrollTop = this.root.scrollHeight;
  }
}

/** A text in blocks. */
export class TextBlocks {
  constructor() {
    this.root = element("div");
    this.shown = "";
    /** @type {Text | null} */
    this._last = null;
  }

  /**
   * Show this text. One that begins with what is shown is only added to.
   * @param {string} text
   */
  set(text) {
    if (!text.startsWith(this.shown)) {
      this.root.replaceChildren();
      this._last = null;
      this.shown = "";
    }
    this._add(text.slice(this.shown.length));
    this.shown = text;
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

/** A text, as it is. */
export class LongText {
  /** @param {string} label what a screen reader calls it */
  constructor(label) {
    this._blocks = new TextBlocks();
    this._scroller = new Scroller(label, this._blocks.root);
    this.root = this._scroller.root;
  }

  /** @param {string} text */
  set(text) {
    if (text !== this._blocks.shown) this._scroller.grow(() => this._blocks.set(text));
  }
}
