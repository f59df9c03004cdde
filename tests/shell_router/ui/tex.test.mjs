/** What MathML is made of TeX, and what is not known. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { install, written } from "./page_elements.mjs";

install();
const { formatted } = await import("../../../shell_router/ui/formatted.js");

/** The inside of the formula's element; null where it is shown as its source. */
function made(tex) {
  const [paragraph] = formatted(`\\(${tex}\\)`).children;
  const [found] = paragraph.children;
  return found.tag === "math" ? written(found).replace(/^<math display="inline">|<\/math>$/g, "") : null;
}

const KNOWN = {
  "x^2": "<msup><mi>x</mi><mn>2</mn></msup>",
  "x^10": "<msup><mi>x</mi><mn>1</mn></msup><mn>0</mn>",
  "x_i^{n+1}": "<msubsup><mi>x</mi><mi>i</mi><mrow><mi>n</mi><mo>+</mo><mn>1</mn></mrow></msubsup>",
  "f''": "<msup><mi>f</mi><mo>′′</mo></msup>",
  "\\frac{1}{2} \\dfrac34": "<mfrac><mn>1</mn><mn>2</mn></mfrac><mfrac><mn>3</mn><mn>4</mn></mfrac>",
  "\\sqrt{x} \\sqrt[3]{y}": "<msqrt><mi>x</mi></msqrt><mroot><mi>y</mi><mn>3</mn></mroot>",
  "\\alpha \\le \\Omega": "<mi>α</mi><mo>≤</mo><mi>Ω</mi>",
  "17 \\times 3 = 1,051.5": "<mn>17</mn><mo>×</mo><mn>3</mn><mo>=</mo><mn>1,051.5</mn>",
  "\\boxed{51}": "<mrow><mn>51</mn></mrow>",
  "5\\text{ if } n": "<mn>5</mn><mtext>\u00a0if\u00a0</mtext><mi>n</mi>",
  "\\mathrm{kg}": '<mi mathvariant="normal">kg</mi>',
  "\\sum_{i=1}^n i": '<munderover><mo largeop="true" movablelimits="true">∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover><mi>i</mi>',
  "\\int_0^1": '<msubsup><mo largeop="true" movablelimits="true">∫</mo><mn>0</mn><mn>1</mn></msubsup>',
  "\\lim_{x \\to 0}": '<munder><mo movablelimits="true">lim</mo><mrow><mi>x</mi><mo>→</mo><mn>0</mn></mrow></munder>',
  "\\left( \\frac12 \\right)": '<mrow><mo fence="true" stretchy="true">(</mo><mfrac><mn>1</mn><mn>2</mn></mfrac><mo fence="true" stretchy="true">)</mo></mrow>',
  "\\left. x \\right|": '<mrow><mi>x</mi><mo fence="true" stretchy="true">|</mo></mrow>',
  "\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}": '<mrow><mo fence="true" stretchy="true">(</mo><mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr><mtr><mtd><mi>c</mi></mtd><mtd><mi>d</mi></mtd></mtr></mtable><mo fence="true" stretchy="true">)</mo></mrow>',
  "a &= b \\\\ &= c \\\\": "<mtable><mtr><mtd><mi>a</mi></mtd><mtd><mo>=</mo><mi>b</mi></mtd></mtr><mtr><mtd></mtd><mtd><mo>=</mo><mi>c</mi></mtd></mtr></mtable>",
  "\\hat{x} \\overline{AB}": '<mover accent="true"><mi>x</mi><mo>^</mo></mover><mover accent="true"><mrow><mi>A</mi><mi>B</mi></mrow><mo>‾</mo></mover>',
  "\\mathbb{R} \\not= \\{1\\%\\}": "<mi>ℝ</mi><mo>=\u0338</mo><mo>{</mo><mn>1</mn><mo>%</mo><mo>}</mo>",
  "\\binom{n}{k}": '<mrow><mo>(</mo><mfrac linethickness="0"><mi>n</mi><mi>k</mi></mfrac><mo>)</mo></mrow>',
  "\\sin x \\, \\log_2 y": '<mi>sin</mi><mi>x</mi><mspace width="0.17em"></mspace><msub><mi>log</mi><mn>2</mn></msub><mi>y</mi>',
};
for (const [tex, expected] of Object.entries(KNOWN)) test(tex, () => assert.equal(made(tex), expected));

const UNKNOWN = [
  "\\foo", "\\frac{1}", "{", "}", "x^", "x^2^3", "\\left(", "\\begin{matrix} a", "\\begin{foo} a \\end{foo}", "\\text{", "\\text{\\foo}",
  "\\begin{matrix} a \\end{pmatrix}", "\\sqrt[3{x}", "{".repeat(200) + "}".repeat(200), "\\hat".repeat(1000) + "x", "x".repeat(6000),
  "\\constructor", "\\__proto__", "\\begin{constructor}\\end{constructor}", "\\not".repeat(1200), "#",
];
for (const tex of UNKNOWN) test(`not known: ${tex.slice(0, 40)}`, () => assert.equal(made(tex), null));
