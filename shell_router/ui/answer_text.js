/** An answer that grows. What is whole of it is formatted, once, a little at a time; the rest is text until it is. */

import { formats } from "./answer_form.js";
import { element } from "./dom.js";
import { LONGEST, formatted } from "./formatted.js";
import { Scroller, TextBlocks } from "./long_text.js";
import { Segments } from "./markdown.js";

/** Longest time that formatting takes from the page at once. */
const AT_ONCE_MS = 12;

export class AnswerText {
  /** @param {string} label what a screen reader calls it */
  constructor(label) {
    this._whole = element("div");
    this._rest = new TextBlocks();
    this._scroller = new Scroller(label, element("div", {}, this._whole, this._rest.root));
    this.root = this._scroller.root;
    this._text = "";
    this._ended = false;
    /** The timer of the next turn. */
    this._later = 0;
    this._begin();
  }

  /**
   * Show this answer.
   * @param {string} text
   * @param {boolean} ended whether nothing comes after it
   */
  set(text, ended) {
    const again = !text.startsWith(this._text) || this._formats !== formats() || (this._over && text !== this._text);
    if (!again && text === this._text && ended === this._ended) return;
    this._text = text;
    this._ended = ended;
    this._scroller.grow(() => {
      if (again) this._begin();
      this._go();
    });
  }

  /** From the beginning. */
  _begin() {
    this._formats = formats();
    this._segments = new Segments();
    /** Segments, and how many of them are drawn. @type {string[]} */
    this._ready = [];
    this._done = 0;
    /** Characters that are. */
    this._drawn = 0;
    /** Whether the last segment is among those. */
    this._over = false;
    this._whole.replaceChildren();
    this._rest.set("");
  }

  _go() {
    if (this._formats) this._format();
    this._rest.set(this._text.slice(this._drawn));
  }

  /** Draw what is whole, for a while; the rest of it in the next turns. */
  _format() {
    for (const segment of this._segments.take(this._text)) this._ready.push(segment);
    if (this._ended && !this._over) {
      this._ready.push(this._text.slice(this._segments.from));
      this._over = true;
    }
    const until = performance.now() + AT_ONCE_MS;
    for (; this._done < this._ready.length && performance.now() < until; this._done += 1) {
      const segment = this._ready[this._done];
      this._whole.append(segment.length > LONGEST ? plain(segment) : formatted(segment));
      this._drawn += segment.length;
    }
    if (this._done < this._ready.length && this._later === 0) {
      this._later = setTimeout(() => {
        this._later = 0;
        this._scroller.grow(() => this._go());
      });
    }
  }
}

/** @param {string} text */
function plain(text) {
  const blocks = new TextBlocks();
  blocks.set(text);
  return blocks.root;
}
