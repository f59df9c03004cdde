/** The router's HTTP API. */

import { askForKey, key } from "./key.js";

// The page may be served under a path of a proxy's.
const BASE = new URL("../v1/", document.baseURI);

/** What the router answered in place of what was asked for. */
export class ApiError extends Error {
  /**
   * @param {number} status of HTTP; 0 where there was no answer
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * The response to a call that has succeeded. A key is asked for where one is wanted.
 * @param {string} path below `/v1/`
 * @param {RequestInit & {headers?: Object<string, string>}} [options]
 * @returns {Promise<Response>}
 * @throws {ApiError}
 */
export async function call(path, options = {}) {
  for (;;) {
    const used = key();
    const headers = { ...options.headers, ...(used === null ? {} : { Authorization: `Bearer ${used}` }) };
    /** @type {Response} */
    let response;
    try {
      response = await fetch(new URL(path, BASE), { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new ApiError(0, "the router does not answer");
    }
    if (response.ok) return response;
    const message = await told(response);
    if (response.status !== 401) throw new ApiError(response.status, message);
    await askForKey(used, message);
  }
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function get(path, signal) {
  return (await call(path, { signal })).json();
}

/**
 * @param {string} path
 * @param {any} body
 * @returns {Promise<any>}
 */
export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await call(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/**
 * End a run; returns when its engines are free.
 * @param {string} id
 */
export async function cancelRun(id) {
  await call(`runs/${encodeURIComponent(id)}`, { method: "DELETE" });
}

/**
 * Save what a call answers as a file.
 * @param {string} path
 * @param {string} name
 */
export async function save(path, name) {
  const url = URL.createObjectURL(await (await call(path)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * @param {Response} response
 * @returns {Promise<string>}
 */
async function told(response) {
  try {
    return String((await response.json()).error.message);
  } catch {
    return `HTTP ${response.status}`;
  }
}
