/** Server-sent events over `fetch`: unlike `EventSource` it sends a key, and can be told where to go on. */

import { ApiError, call } from "./api.js";

const FIRST_WAIT_MS = 500;
const LAST_WAIT_MS = 8000;
/** A router that lives says something every 15 s. */
const SILENCE_MS = 40_000;
const END = "[DONE]";

/**
 * Follow a stream to its end, however often it breaks off.
 * @param {string} path below `/v1/`
 * @param {Object} hooks
 * @param {(data: any) => void} hooks.event takes each event's JSON, in order, none twice
 * @param {(state: "live" | "lost") => void} hooks.connection
 * @param {AbortSignal} signal ends it
 * @throws {ApiError} when there is no such stream
 */
export async function follow(path, hooks, signal) {
  let last = /** @type {string | null} */ (null);
  let wait = FIRST_WAIT_MS;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop, { once: true });
    try {
      const headers = last === null ? undefined : { "Last-Event-ID": last };
      const response = await call(path, { headers, signal: attempt.signal });
      hooks.connection("live");
      for await (const message of messages(response, attempt)) {
        wait = FIRST_WAIT_MS;
        if (message.data === END) return;
        hooks.event(JSON.parse(message.data));
        // Now, and not before: what has not been taken up is to come again.
        last = message.id ?? last;
      }
    } catch (error) {
      if (signal.aborted) return;
      // What the client did wrong does not get better. All else may.
      if (error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    } finally {
      signal.removeEventListener("abort", stop);
    }
    hooks.connection("lost");
    await pause(wait, signal);
    wait = Math.min(2 * wait, LAST_WAIT_MS);
  }
}

/**
 * @param {Response} response
 * @param {AbortController} attempt
 * @returns {AsyncGenerator<{id: string | null, data: string}>}
 */
async function* messages(response, attempt) {
  if (response.body === null) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let id = /** @type {string | null} */ (null);
  let data = /** @type {string[]} */ ([]);
  for (;;) {
    const timer = setTimeout(() => attempt.abort(), SILENCE_MS);
    const { done, value } = await reader.read().finally(() => clearTimeout(timer));
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (data.length > 0) yield { id, data: data.join("\n") };
        data = [];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(5).trimStart());
      } else if (line.startsWith("id:")) {
        id = line.slice(3).trim();
      }
    }
  }
}

/**
 * Wait, but no longer than until the network is back.
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 */
function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const go = () => {
      clearTimeout(timer);
      removeEventListener("online", go);
      signal.removeEventListener("abort", go);
      resolve(undefined);
    };
    const timer = setTimeout(go, milliseconds);
    addEventListener("online", go);
    signal.addEventListener("abort", go);
  });
}
