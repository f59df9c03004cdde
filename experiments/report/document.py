"""A document of headings, paragraphs, tables and pictures, written as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light dark; --ink: #22262b; --faint: #667080; --line: #dfe3e8; --paper: #ffffff; --head: #f4f6f8;
  --note: #fff6e0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --faint: #9aa4b1; --line: #3a414b; --paper: #16191d; --head: #20252b; --note: #3a3117; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin-top: 1.8rem; }
p { max-width: 60rem; } p.note { background: var(--note); padding: .6rem .9rem; border-radius: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
th { background: var(--head); font-weight: 600; }
td { overflow-wrap: anywhere; min-width: 5rem; }
figure { margin: 1rem 0; } figcaption { color: var(--faint); font-size: .85rem; }
figure img { display: block; max-width: 100%; background: #ffffff; border-radius: 6px; }
""".strip()
# What is a sign of Markdown in the middle of a line, or of HTML, which Markdown lets through.
_SIGNS = re.compile(r"([\\`*_\[\]<>|~#&])")


@dataclass(frozen=True)
class Heading:
    """Level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text; `note` stands out."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Table:
    """The first row is the head, the first column names the rows."""

    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An SVG image: within the HTML file, and a file of its own beside the Markdown, which cannot hold it."""

    name: str
    """What it shows; no two of a document have the same."""
    svg: bytes
    caption: str


Block = Heading | Paragraph | Table | Picture


def picture_files(blocks: Sequence[Block]) -> dict[str, bytes]:
    """The pictures of `to_markdown`, by file name."""
    return {_file_name(block): block.svg for block in blocks if isinstance(block, Picture)}


def to_markdown(blocks: Sequence[Block]) -> str:
    """Tables and text, and references to `picture_files` in the same folder."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block]) -> str:
    """One file that needs no other."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Paragraph():
            return f"> {_plain(block.text)}" if block.note else _plain(block.text)
        case Picture():
            caption = _plain(block.caption)
            return f"![{caption}]({_file_name(block)})\n\n*{caption}*"
        case Table():
            head, *rows = [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in block.rows]
            return "\n".join([head, "|" + "---|" * len(block.rows[0]), *rows])


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case Paragraph():
            kind = ' class="note"' if block.note else ""
            return f"<p{kind}>{html.escape(block.text)}</p>"
        case Picture():
            data = base64.b64encode(block.svg).decode()
            caption = html.escape(block.caption)
            return (
                f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        case Table():
            head, *rows = block.rows
            lines = ["<tr>" + "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head) + "</tr>"]
            for name, *cells in rows:
                lines.append(
                    f'<tr><th scope="row">{html.escape(name)}</th>'
                    + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
                    + "</tr>"
                )
            return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _file_name(picture: Picture) -> str:
    """Without what needs quotes in a shell or in an address."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", picture.name).strip("-") + ".svg"


def _plain(text: str) -> str:
    """On one line, and nothing in it is a sign."""
    return _SIGNS.sub(r"\\\1", " ".join(text.split()))
