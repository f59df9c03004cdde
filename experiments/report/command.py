"""`graft report FOLDER...`: tables and pictures of finished experiments.

Reads folders of `graft run` (`summary.json`) and of `graft bench load` (`report.json`), starts nothing and asks nobody.
Writes `report.md` with its pictures (SVG files beside it), `report.html` (one file that needs no other) and
`report.json`. The last line of stdout is one JSON document with their paths.

Exit codes: 0 written, 2 wrong command line or folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from experiments.report.content import make_document
from experiments.report.document import picture_files, to_html, to_markdown
from experiments.report.page import make_page
from experiments.report.source import LOAD, SUMMARY, SourceError, load
from launch.arguments import Parser


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of stdout."""

    runs: tuple[str, ...]
    """Labels of the folders of `graft run`."""
    loads: tuple[str, ...]
    """Labels of the folders of load tests."""
    markdown: str
    pictures: tuple[str, ...]
    html: str | None
    json: str


def main(argv: list[str]) -> int:
    """Write a report as the command line says; answers the exit code."""
    arguments = _parser().parse_args(argv)
    folders: list[Path] = arguments.folders
    out = _check_out(arguments.out or folders[0] / "report", folders)
    written = write(folders, out, html=arguments.html)
    print(f"report  {written.html or written.markdown}\n")
    print(msgspec.json.encode(written).decode(), flush=True)
    return 0


def write(folders: list[Path], out: Path, *, html: bool = True) -> Written:
    """Write all files into `out`, over those of an earlier report. Raises `SourceError`."""
    runs, loads = load(folders)
    document = make_document(runs, loads)
    page = make_page(document, runs)
    pictures = picture_files(page)
    files = {
        "report.md": to_markdown(page).encode(),
        "report.json": msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n",
        **pictures,
        **({"report.html": to_html(page).encode()} if html else {}),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise SourceError(f"{out} cannot be written: {error.strerror}") from error
    return Written(
        runs=tuple(each.label for each in runs),
        loads=tuple(each.label for each in loads),
        markdown=str(out / "report.md"),
        pictures=tuple(str(out / name) for name in pictures),
        html=str(out / "report.html") if html else None,
        json=str(out / "report.json"),
    )


def _check_out(out: Path, folders: list[Path]) -> Path:
    """Raise `SourceError` when a report there would overwrite results."""
    ours = out.resolve() in {folder.resolve() for folder in folders}
    if ours or any((out / name).exists() for name in (SUMMARY, "runs.jsonl", "blocks.jsonl")):
        raise SourceError(f"{out} holds results, a report goes to a folder of its own - at `--out`")
    return out


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="graft report", description="Tables and pictures of finished experiments: Markdown, HTML and JSON."
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help=f"of `graft run` (with {SUMMARY}) or of a load test (with {LOAD}); several stand side by side",
    )
    parser.add_argument(
        "--no-html",
        dest="html",
        action="store_false",
        help="leave report.html out: for a repository, which shows the Markdown and its pictures",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: `report` in the first folder")
    return parser
