/** What is made of an answer: the elements that are meant, and nothing else whatever the answer says. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { elements, install, written } from "./page_elements.mjs";

install();
const { formatted } = await import("../../../shell_router/ui/formatted.js");

/** The inside of what is made. */
const made = (text) => written(formatted(text)).slice("<div>".length, -"</div>".length);
const p = (inside) => `<p>${inside}</p>`;

const CASES = {
  paragraphs: ["one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"],
  emphasis: ["*a* **b** ***c*** _d_ __e__ ~~f~~", p("<em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> <strong>e</strong> <del>f</del>")],
  "emphasis in emphasis": ["**a *b* c** *d **e***", p("<strong>a <em>b</em> c</strong> <em>d <strong>e</strong></em>")],
  "emphasis around Chinese": ["这是**重点**内容", p("这是<strong>重点</strong>内容")],
  "what multiplies or names is no emphasis": ["2*3*4 a_b_c 5 * 6 * 7 ~x~", p("2*3*4 a_b_c 5 * 6 * 7 ~x~")],
  "emphasis without an end": ["**a *b `c [d ~~e", p("**a *b `c [d ~~e")],
  "crossed emphasis": ["*a **b* c**", p("<em>a <em><em>b</em> c</em></em>")],
  escapes: ["\\*a\\* \\_ \\\\ \\d", p("*a* _ \\ \\d")],
  code: ["`a` ``b`c`` ` `` ` `*d*`", p("<code>a</code> <code>b`c</code> <code>``</code> <code>*d*</code>")],
  headings: ["# a\n## b ##\n####### c\n#d", '<h4 data-level="1">a</h4><h5 data-level="2">b</h5><p>####### c\n#d</p>'],
  fences: ["```python\na = 1\n\n  *b*\n```\nc", '<pre data-language="python"><code>a = 1\n\n  *b*</code></pre><p>c</p>'],
  "a fence without an end": ["~~~\na\n```\nb", "<pre><code>a\n```\nb</code></pre>"],
  lists: ["- a\n- b\n  - c\n  - d\n\n1. e\n2. f", "<ul><li>a</li><li>b<ul><li>c</li><li>d</li></ul></li></ul><ol start=\"1\"><li>e</li><li>f</li></ol>"],
  "a list of paragraphs": ["3. a\n\n   b\n4. c", '<ol start="3"><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>'],
  "code in a list": ["* a\n  ```\n  b\n  ```\n* c", "<ul><li>a<pre><code>b</code></pre></li><li>c</li></ul>"],
  quotes: ["> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"],
  rules: ["a\n\n---\n* * *\nb", "<p>a</p><hr></hr><hr></hr><p>b</p>"],
  tables: [
    "| a | b \\| c |\n|:--|--:|\n| `d` | *e* | f |\n| g |\n\nh",
    '<div><table><thead><tr><th data-align="left">a</th><th data-align="right">b | c</th></tr></thead><tbody><tr><td data-align="left"><code>d</code></td><td data-align="right"><em>e</em></td></tr><tr><td data-align="left">g</td></tr></tbody></table></div><p>h</p>',
  ],
  "a row that is no table": ["a | b\n--- | --- | ---", p("a | b\n--- | --- | ---")],
  links: ["[a *b*](https://x.org/c \"d\") <https://y.org>, https://z.org/e_f_(g).", p('<a href="https://x.org/c">a <em>b</em></a> &lt;<a href="https://y.org/">https://y.org</a>>, <a href="https://z.org/e_f_(g)">https://z.org/e_f_(g)</a>.')],
  "a link in a link": ["[a https://x.org b](https://y.org)", p('<a href="https://y.org/">a <span>https://x.org</span> b</a>')],
  "pictures are links": ["![a](https://x.org/b.png)", p('<a href="https://x.org/b.png">a</a>')],
  "prices are no formulas": ["$5 and $6, $7-$8, US$9$x", p("$5 and $6, $7-$8, US$9$x")],
  formulas: ["$x$ \\(y\\) $$z$$", p('<math display="inline"><mi>x</mi></math> <math display="inline"><mi>y</mi></math> <math display="block"><mi>z</mi></math>')],
  "a formula of lines": ["a\n\\[\nx\n- y\n\\]\nb", '<p>a</p><p><math display="block"><mi>x</mi><mo>−</mo><mi>y</mi></math></p><p>b</p>'],
  "a formula without an end": ["$$\nx\n\ny $z", "<p>$$\nx</p><p>y $z</p>"],
  "a formula that is not known": ["$\\foo{x}$ *a*", p("<code>$\\foo{x}$</code> <em>a</em>")],
  "signs in formulas": ["$a_1 * b_2 * c$", p('<math display="inline"><msub><mi>a</mi><mn>1</mn></msub><mo>*</mo><msub><mi>b</mi><mn>2</mn></msub><mo>*</mo><mi>c</mi></math>')],
};
for (const [name, [text, expected]] of Object.entries(CASES)) {
  test(name, () => assert.equal(made(text), expected));
}

const HOSTILE = {
  script: "<script>alert(1)</script>\n\n<img src=x onerror=alert(1)>",
  "a link that runs": "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](&#106;avascript:alert(1)) [d]( javascript:alert(1))",
  "a link with a control character": "[a](java\u0000script:alert(1)) [b](\u0001javascript:alert(1)) <javascript:alert(1)>",
  "a link of data": "[a](data:text/html;base64,PHNjcmlwdD4=) [b](vbscript:x) [c](file:///etc/passwd) [d](//x.org) [e](blob:x)",
  "a link with a user": "[a](https://bank.org@x.org) [b](https://bank.org:443@x.org/c)",
  "an attribute": '[a](https://x.org/" onmouseover="alert(1)) [b](https://x.org/<script>)',
  "a language": '```js" onload="alert(1)\n```',
  "a formula": "$\\text{<img src=x onerror=alert(1)>} \\href{javascript:alert(1)}{x}$ $\\text{</math><script>}$",
};
const TAGS = new Set(
  "div p h4 h5 h6 pre code blockquote ul ol li table thead tbody tr th td hr a span em strong del math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd".split(" "),
);
const ATTRIBUTES = new Set(
  "class data-level data-language data-align tabindex start href title target rel display width stretchy fence accent largeop movablelimits linethickness mathvariant".split(" "),
);

/** Nothing is made but what is meant. */
function harmless(root) {
  for (const each of elements(root)) {
    assert.ok(TAGS.has(each.tag), each.tag);
    for (const name of Object.keys(each.attributes)) assert.ok(ATTRIBUTES.has(name), name);
    if (each.tag === "a") {
      assert.match(each.attributes.href, /^https?:\/\//);
      assert.equal(each.attributes.rel, "noopener noreferrer");
      assert.equal(each.attributes.title, each.attributes.href);
    }
  }
}
for (const [name, text] of Object.entries(HOSTILE)) {
  test(`hostile: ${name}`, () => {
    const root = formatted(text);
    harmless(root);
    const links = [...elements(root)].filter((each) => each.tag === "a");
    assert.ok(name === "an attribute" || links.length === 0, written(root));
  });
}

test("what is no link is shown as it is written", () => {
  assert.equal(formatted("[a](javascript:alert(1))").textContent, "[a](javascript:alert(1))");
});

/** Numbers that look random, the same each time. */
function random(seed) {
  let state = seed;
  return (below) => (state = (state * 1103515245 + 12345) % 2147483648) % below;
}
const PIECES = [
  ..."*_`~[]()<>|#-+>$\\{}^&!:'\".\n\n\n  ab1",
  "**", "```", "$$", "\\(", "\\)", "\\[", "\\]", "](https://x.org)", "https://y.org", "1. ", "- ", "> ", "    ", "|--|--|",
  "\\frac", "\\sqrt[", "\\left(", "\\right)", "\\begin{matrix}", "\\end{matrix}", "\\\\", "\\text{", "é", "😀", "\u0000", "\ud800", "\t", "\r\n",
];

test("no text makes it throw, or make anything else", () => {
  for (let seed = 1; seed <= 3000; seed += 1) {
    const next = random(seed * 7919);
    let text = "";
    for (let left = 1 + next(60); left > 0; left -= 1) text += PIECES[next(PIECES.length)];
    harmless(formatted(text));
  }
});

const LONG = 100_000;
const LONG_TEXTS = {
  "open emphasis": "*a ", "closed emphasis": "*a* ", "stars": "*", "mixed marks": "*_~~", "stars apart": "**a ",
  "open brackets": "[", "open links": "[a](", "nested links": "[![", "closing brackets": "]", "targets": "](a ", "spaces in a target": "](",
  "backticks": "`", "open code": "`a ``b ```c ", "dollars": "$a ", "pairs of dollars": "$$", "parentheses": "\\(", "quotes": ">",
  "quotes apart": "> ", "items": "- ", "numbers": "1. ", "lines of items": "- a\n", "deeper items": "  - a\n", "tables": "|-", "lines of tables": "|a|b|\n|-|-|\n",
  "open fences": "```\n~~~\n", "addresses": "https://", "bad addresses": "https://[", "good addresses": "https://x.org ", "h": "h", "hashes": "#", "hashes apart": "# #",
  "backslashes": "\\", "spaces": " ", "tabs": "\t", "new lines": "\n", "rules": "- - ", "formulas": "$x$ ", "letters": "a", "mathematics": "$$\n", "open mathematics": "\\[\na\n", "titles": '](a "', "braces": "{",
};
for (const [name, piece] of Object.entries(LONG_TEXTS)) {
  for (const [form, around] of [["", (text) => text], [" behind a space", (text) => `a${" ".repeat(LONG / 2)}b${text}`], [" in a formula", (text) => `$$${text}$$`]]) {
    test(`long: ${name}${form}`, { timeout: 20_000 }, () => {
      const started = performance.now();
      harmless(formatted(around(piece.repeat(LONG / piece.length))));
      assert.ok(performance.now() - started < 5_000, "not in proportion to its length");
    });
  }
}
