/** Addresses that a link may have. */

const SCHEMES = ["http:", "https:"];

/**
 * An address of the web as a browser reads it; null for what is none: `javascript:`, `data:`, relative ones.
 * @param {string} address
 * @returns {string | null}
 */
export function webAddress(address) {
  try {
    const url = new URL(address);
    return SCHEMES.includes(url.protocol) && url.username === "" && url.password === "" ? url.href : null;
  } catch {
    return null;
  }
}
