/** How answers are shown: formatted, or as the text that they are. Remembered. */

import { byId } from "./dom.js";

const NAME = "graft-answers";

/** Whether answers are formatted. */
export function formats() {
  return localStorage.getItem(NAME) !== "text";
}

export function offerForms() {
  const select = byId("answers");
  select.value = formats() ? "formatted" : "text";
  select.addEventListener("change", () => {
    localStorage.setItem(NAME, select.value);
    dispatchEvent(new Event("answerschange"));
  });
}
