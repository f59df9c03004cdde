/** The API key, for routers that want one: asked for when it is needed, kept for this tab. */

import { byId, setText } from "./dom.js";

const NAME = "graft-key";
/** @type {Promise<void> | null} */
let asking = null;

/** @returns {string | null} */
export function key() {
  return sessionStorage.getItem(NAME);
}

/**
 * Ask for a key; all who need one meanwhile wait for the same answer.
 * @param {string | null} used the key that was refused
 * @param {string} why what the router says
 * @returns {Promise<void>}
 */
export function askForKey(used, why) {
  // Another request has asked, and been answered, since this one was sent.
  if (asking === null && key() !== used) return Promise.resolve();
  asking ??= ask(why).finally(() => {
    asking = null;
  });
  return asking;
}

/**
 * @param {string} why
 * @returns {Promise<void>}
 */
function ask(why) {
  const dialog = byId("key");
  const input = byId("key-input");
  setText(byId("key-why"), why);
  input.value = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    /** @param {Event} event */
    const used = (event) => {
      event.preventDefault();
      sessionStorage.setItem(NAME, input.value.trim());
      byId("key-form").removeEventListener("submit", used);
      dialog.removeEventListener("cancel", stay);
      dialog.close();
      showForget();
      resolve();
    };
    /** @param {Event} event */
    const stay = (event) => event.preventDefault();
    byId("key-form").addEventListener("submit", used);
    // Without a key there is nothing to see.
    dialog.addEventListener("cancel", stay);
  });
}

/** Offer to forget the key where there is one. */
export function showForget() {
  const button = byId("forget");
  button.hidden = key() === null;
  button.onclick = () => {
    sessionStorage.removeItem(NAME);
    location.reload();
  };
}
