/** An answer while it grows: what is whole is formatted once, the rest is text, and nothing is lost between them. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { elements, install } from "./page_elements.mjs";

install();
/** What waits for its turn. */
const turns = [];
globalThis.setTimeout = (turn) => turns.push(turn);
const { AnswerText } = await import("../../../shell_router/ui/answer_text.js");
const { Segments } = await import("../../../shell_router/ui/markdown.js");

const TEXT = "# Clips\n\nIn *April* 48:\n\n- a\n\n- b\n\n```\nx\n\ny\n```\n\n$$\na\n\n= b\n$$\n\nSo **72**.\n";
const tags = (answer) => [...elements(answer.root)].map((each) => each.tag).filter((tag) => tag !== "div");
const WHOLE = ["h4", "p", "em", "ul", "li", "p", "li", "p", "pre", "code", "p", "math", "mi", "mo", "mi", "p", "strong"];

function settle() {
  for (let turn; (turn = turns.shift()); ) turn();
}

test("segments are the same however the text comes", () => {
  const atOnce = new Segments().take(TEXT);
  assert.equal(atOnce.length, 4);
  for (const size of [1, 2, 7, 30]) {
    const segments = new Segments();
    const found = [];
    for (let end = 0; end < TEXT.length + size; end += size) found.push(...segments.take(TEXT.slice(0, end)));
    assert.deepEqual(found, atOnce);
    assert.equal(found.join("") + TEXT.slice(segments.from), TEXT);
  }
});

test("long code stays in one piece, and mathematics without an end does not take everything", () => {
  assert.equal(new Segments().take(`\`\`\`\n${"a\n\n".repeat(2000)}\`\`\`\n\nb\n`).length, 1);
  assert.ok(new Segments().take(`$$\n${"a\n\n".repeat(2000)}b\n`).length > 1000);
});

test("what is whole is formatted while the rest comes, and drawn once", () => {
  const answer = new AnswerText("Answer");
  const drawn = [];
  for (let end = 1; end <= TEXT.length; end += 1) {
    answer.set(TEXT.slice(0, end), false);
    settle();
    // What has been drawn stays as it is.
    const [whole] = answer.root.children[0].children;
    drawn.forEach((each, number) => assert.equal(whole.children[number], each));
    drawn.splice(0, drawn.length, ...whole.children);
    assert.ok(answer.root.textContent.endsWith(TEXT.slice(0, end).split("\n").at(-1).trimStart()) || end === TEXT.length);
  }
  answer.set(TEXT, true);
  assert.deepEqual(tags(answer), WHOLE);
});

test("a whole answer is drawn as the same answer that came in pieces", () => {
  const answer = new AnswerText("Answer");
  answer.set(TEXT, true);
  settle();
  assert.deepEqual(tags(answer), WHOLE);
});

test("an answer that begins anew is drawn anew, and so is one that goes on after its end", () => {
  const answer = new AnswerText("Answer");
  answer.set("**a**\n\nb", true);
  answer.set("c", false);
  assert.equal(answer.root.textContent, "c");
  answer.set("c *d*", true);
  answer.set("c *d* e", true);
  settle();
  assert.equal(answer.root.textContent, "c d e");
  assert.deepEqual(tags(answer), ["p", "em"]);
});

test("it may be shown as text, and formatted again", () => {
  const answer = new AnswerText("Answer");
  answer.set(TEXT, true);
  localStorage.setItem("graft-answers", "text");
  answer.set(TEXT, true);
  assert.equal(answer.root.textContent, TEXT);
  assert.deepEqual(tags(answer), []);
  localStorage.setItem("graft-answers", "formatted");
  answer.set(TEXT, true);
  settle();
  assert.deepEqual(tags(answer), WHOLE);
});

test("a long answer is drawn over many turns, each of them short", () => {
  const paragraph = `${"*a* `b` $x^2$ ".repeat(20)}\n\n`;
  const text = paragraph.repeat(400);
  const answer = new AnswerText("Answer");
  answer.set(text, true);
  let count = 0;
  for (let turn; (turn = turns.shift()); count += 1) {
    const started = performance.now();
    turn();
    assert.ok(performance.now() - started < 1000);
  }
  assert.ok(count > 1, "not all at once");
  assert.equal(tags(answer).filter((tag) => tag === "p").length, 400);
});

test("a piece that is too long to be drawn is shown as it is", () => {
  const text = "*a* ".repeat(10_000);
  const answer = new AnswerText("Answer");
  answer.set(text, true);
  settle();
  assert.equal(answer.root.textContent, text);
});
