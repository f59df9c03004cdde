/** Numbers as people read them. */

/**
 * @param {number | null | undefined} value seconds
 * @returns {string}
 */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${value.toFixed(value < 10 ? 2 : 1)} s` : `${Math.round(value)} s`;
}

/**
 * @param {number} value
 * @returns {string}
 */
export function count(value) {
  return value.toLocaleString("en");
}

/**
 * @param {number} value
 * @param {string} one what one of them is called
 * @returns {string}
 */
export function counted(value, one) {
  return `${count(value)} ${one}${value === 1 ? "" : "s"}`;
}

/**
 * @param {number} part
 * @param {number} whole
 * @returns {string}
 */
export function percent(part, whole) {
  return whole > 0 ? `${Math.round((100 * part) / whole)} %` : "–";
}

/**
 * @param {number} created Unix time, seconds
 * @returns {string}
 */
export function clock(created) {
  const then = new Date(created * 1000);
  const today = new Date().toDateString() === then.toDateString();
  const time = then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return today ? time : `${then.toLocaleDateString()} ${time}`;
}
