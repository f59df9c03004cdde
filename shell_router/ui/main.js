/** The page: what the address says is shown. */

import { offerForms } from "./answer_form.js";
import { AskForm } from "./ask.js";
import { CompareView } from "./compare.js";
import { byId, element } from "./dom.js";
import { showForget } from "./key.js";
import { RunPanel } from "./run_panel.js";
import { RunsView } from "./runs.js";
import { offerThemes } from "./theme.js";
import { WorkersView } from "./workers.js";

/** @typedef {{root: HTMLElement, stop: () => void}} View */

/** @type {[RegExp, string, string, (...ids: string[]) => View | null][]} address, page, title, what is shown */
const ROUTES = [
  [/^#\/runs$/, "runs", "Runs", () => new RunsView()],
  [/^#\/workers$/, "workers", "Workers", () => new WorkersView()],
  [/^#\/run\/([^/]+)$/, "ask", "Run", (id) => new RunPanel(id)],
  [/^#\/compare\/([^/]+)\/([^/]+)$/, "ask", "Two runs", (first, second) => new CompareView(first, second)],
  [/^/, "ask", "Ask", () => null],
];

const form = new AskForm();
/** @type {View | null} */
let shown = null;

function show() {
  const [pattern, page, title, make] = /** @type {typeof ROUTES[number]} */ (
    ROUTES.find(([each]) => each.test(location.hash))
  );
  const ids = (location.hash.match(pattern) ?? []).slice(1).map(decode);
  shown?.stop();
  shown = make(...ids);
  const main = byId("main");
  form.small = shown !== null;
  main.replaceChildren(
    element("h1", { class: "unseen" }, title),
    ...(page === "ask" ? [form.root] : []),
    ...(shown === null ? [] : [shown.root]),
  );
  document.title = `${title} · Graft`;
  for (const link of byId("nav").children) {
    if (link.getAttribute("data-page") === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (page === "ask" && shown === null) form.focus();
}

/** @param {string} part of an address, which anybody may have typed */
function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

byId("skip").addEventListener("click", () => byId("main").focus());
offerThemes();
offerForms();
showForget();
addEventListener("hashchange", show);
show();
