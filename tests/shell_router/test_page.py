"""The page's files over HTTP: what they are, what they are told to the browser as, and that they name each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shell_router.transport.fake import FakeEngine
from shell_router.ui import FOLDER
from tests.shell_router.serving import limited_service, serving_service

FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))


async def test_the_page_is_served_with_a_policy_and_revalidated() -> None:
    async with serving_service(limited_service(FakeEngine())) as client:
        async with client.session.get(f"{client.url}/ui", allow_redirects=False) as reply:
            # Relative, for proxies that have the router under a path of their own.
            assert (reply.status, reply.headers["Location"]) == (307, "ui/")
        kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
        for path in FILES:
            async with client.session.get(f"{client.url}/ui/{path.name}") as reply:
                assert (reply.status, reply.content_type) == (200, kinds[path.suffix])
                assert await reply.read() == path.read_bytes()
                policy = reply.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "frame-ancestors 'none'" in policy
                assert "require-trusted-types-for 'script'" in policy
                assert "unsafe" not in policy
                assert reply.headers["X-Content-Type-Options"] == "nosniff"
                tag = reply.headers["ETag"]
            async with client.session.get(f"{client.url}/ui/{path.name}", headers={"If-None-Match": tag}) as reply:
                assert (reply.status, await reply.read()) == (304, b"")
        for name in ("nothing.js", "__init__.py", "..%2f__init__.py"):
            status, told, _ = await client.call("GET", f"/ui/{name}")
            assert (status, told["error"]["code"]) == (404, "no_such_file")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_needs_nothing_that_is_not_beside_it(path: Path) -> None:
    text = path.read_text()
    named = re.findall(r'(?:\} from |^import |src=|href=)"([^"#]+)"', text, re.MULTILINE)
    assert [name for name in named if not (FOLDER / name).is_file()] == []
    assert re.findall(r"https?://(?!www\.w3\.org/)", text) == [], "it works offline"


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".js"], ids=lambda path: path.name)
def test_no_string_becomes_markup_or_script(path: Path) -> None:
    text = path.read_text()
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|DOMParser"
    assert re.findall(sinks, text) == []
