/** Light or dark: the system's, or what was chosen here. */

import { byId } from "./dom.js";

const NAME = "graft-theme";

export function offerThemes() {
  const select = byId("theme");
  select.value = localStorage.getItem(NAME) ?? "";
  const apply = () => {
    document.documentElement.dataset.theme = select.value;
    localStorage.setItem(NAME, select.value);
    // Canvases have no style of their own.
    dispatchEvent(new Event("themechange"));
  };
  select.addEventListener("change", apply);
  apply();
}
