/** A list of any length: of its rows only those in sight are elements. */

import { element } from "./dom.js";

const ROW = 44;
const BEYOND = 8;

/** @template T */
export class Rows {
  /**
   * @param {string} label
   * @param {(item: T) => HTMLElement} make a row, which can be focused
   */
  constructor(label, make) {
    this._make = make;
    /** @type {T[]} */
    this._items = [];
    this._focused = 0;
    this._rows = element("div", { class: "rows", role: "presentation" });
    this.root = element(
      "div",
      {
        class: "scroller",
        role: "list",
        "aria-label": label,
        on: {
          scroll: () => this._draw(),
          keydown: (/** @type {KeyboardEvent} */ event) => this._key(event),
          focusin: (/** @type {FocusEvent} */ event) => this._note(event),
        },
      },
      this._rows,
    );
    this._sizes = new ResizeObserver(() => this._draw());
    this._sizes.observe(this.root);
  }

  stop() {
    this._sizes.disconnect();
  }

  /** @param {T[]} items */
  show(items) {
    this._items = items;
    this._rows.style.height = `${items.length * ROW}px`;
    this._draw();
  }

  _draw() {
    const first = Math.max(0, Math.floor(this.root.scrollTop / ROW) - BEYOND);
    const last = Math.min(this._items.length, Math.ceil((this.root.scrollTop + this.root.clientHeight) / ROW) + BEYOND);
    const had = this._rows.contains(document.activeElement) ? this._focused : null;
    const control = document.activeElement instanceof HTMLInputElement ? "input" : "a";
    const rows = this._items.slice(first, last).map((item, number) => {
      const row = element(
        "div",
        {
          class: "row",
          role: "listitem",
          "aria-setsize": this._items.length,
          "aria-posinset": first + number + 1,
          data: { place: first + number },
        },
        this._make(item),
      );
      row.style.top = `${(first + number) * ROW}px`;
      return row;
    });
    this._rows.replaceChildren(...rows);
    if (had !== null) this._focus(had, control);
  }

  /**
   * @param {number} place
   * @param {string} control
   */
  _focus(place, control) {
    const row = this._rows.querySelector(`[data-place="${Number(place)}"]`);
    /** @type {HTMLElement | null | undefined} */ (row?.querySelector(control))?.focus({ preventScroll: true });
  }

  /** @param {FocusEvent} event */
  _note(event) {
    const row = /** @type {HTMLElement} */ (event.target).closest(".row");
    if (row !== null) this._focused = Number(row.getAttribute("data-place"));
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const page = Math.max(1, Math.floor(this.root.clientHeight / ROW) - 1);
    /** @type {Object<string, number>} */
    const to = {
      ArrowDown: this._focused + 1,
      ArrowUp: this._focused - 1,
      PageDown: this._focused + page,
      PageUp: this._focused - page,
      Home: 0,
      End: this._items.length - 1,
    };
    if (!(event.key in to)) return;
    event.preventDefault();
    this._focused = Math.min(Math.max(0, to[event.key]), this._items.length - 1);
    const top = this._focused * ROW;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    else if (top + ROW > this.root.scrollTop + this.root.clientHeight)
      this.root.scrollTop = top + ROW - this.root.clientHeight;
    this._draw();
    this._focus(this._focused, "a");
  }
}
