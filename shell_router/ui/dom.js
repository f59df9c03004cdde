/** Elements made of data. Texts become text nodes and nothing else: there is no way here from a string to markup. */

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * An HTML element.
 * @param {string} tag
 * @param {Object<string, any>} [properties] `on` holds listeners, `data` data attributes; what is null or false is left
 *   out, and all else is an attribute.
 * @param {...Child} children
 * @returns {HTMLElement}
 */
export function element(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/**
 * An SVG element.
 * @param {string} tag
 * @param {Object<string, any>} [properties]
 * @param {...Child} children
 * @returns {SVGElement}
 */
export function drawing(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

/**
 * A MathML element.
 * @param {string} tag
 * @param {Object<string, any>} [properties]
 * @param {...Child} children
 * @returns {Element}
 */
export function mathematics(tag, properties = {}, ...children) {
  return filled(document.createElementNS(MATHML, tag), properties, children);
}

/**
 * @template {Element} T
 * @param {T} made
 * @param {Object<string, any>} properties
 * @param {Child[]} children
 * @returns {T}
 */
function filled(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (name === "data") {
      for (const [key, each] of Object.entries(value)) if (each !== null) made.setAttribute(`data-${key}`, String(each));
    } else {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false).map(asNode));
  return made;
}

/** @param {Node | string | number} child */
function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

/**
 * Set the text of an element, if it is another.
 * @param {Element} target
 * @param {string} text
 */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/**
 * The element of the page's own markup that has this id.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found;
}

/**
 * Tell something that has happened, for a few seconds.
 * @param {string} text
 */
export function notice(text) {
  const shown = element("p", { class: "notice" }, text);
  byId("notices").append(shown);
  setTimeout(() => shown.remove(), 8000);
}
