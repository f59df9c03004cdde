/** As much of a browser's document as the page's modules use: elements, text nodes, and a way to write them down. No way
 * from a string to markup is there, so code that takes one fails. */

export class Node {
  /** @returns {string} */
  get textContent() {
    return this.children.map((each) => each.textContent).join("");
  }
}

class Text extends Node {
  constructor(data) {
    super();
    this.data = data;
  }

  get textContent() {
    return this.data;
  }

  get length() {
    return this.data.length;
  }

  appendData(more) {
    this.data += more;
  }
}

class Element extends Node {
  constructor(tag, namespace) {
    super();
    Object.assign(this, { tag, namespace, children: [], attributes: {}, scrollTop: 0, clientHeight: 0, scrollHeight: 0 });
  }

  setAttribute(name, value) {
    this.attributes[name] = value;
  }

  append(...children) {
    for (const each of children) {
      if (!(each instanceof Node)) throw new TypeError("no node");
      this.children.push(each);
    }
  }

  replaceChildren(...children) {
    this.children = children;
  }
}

const created = (tag, namespace = "http://www.w3.org/1999/xhtml") => {
  if (!/^[a-z][a-z0-9]*$/.test(tag)) throw new TypeError(`no tag: ${tag}`);
  return new Element(tag, namespace);
};

/** Make them global, as in a browser. */
export function install() {
  const kept = new Map();
  Object.assign(globalThis, {
    Node,
    document: {
      createElement: (tag) => created(tag),
      createElementNS: (namespace, tag) => created(tag, namespace),
      createTextNode: (data) => new Text(data),
    },
    localStorage: { getItem: (name) => kept.get(name) ?? null, setItem: (name, value) => kept.set(name, value) },
  });
}

/** All elements in a node. */
export function* elements(node) {
  if (!(node instanceof Element)) return;
  yield node;
  for (const each of node.children) yield* elements(each);
}

/** An element as markup, without the attributes that a reader of tests does not want. */
export function written(node, unwanted = ["class", "tabindex", "title", "target", "rel"]) {
  if (!(node instanceof Element)) return node.data.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const told = Object.entries(node.attributes).filter(([name]) => !unwanted.includes(name));
  const attributes = told.map(([name, value]) => ` ${name}="${value}"`).join("");
  return `<${node.tag}${attributes}>${node.children.map((each) => written(each, unwanted)).join("")}</${node.tag}>`;
}
