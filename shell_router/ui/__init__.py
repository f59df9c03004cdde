"""The page that `GET /ui` serves: `index.html`, `style.css` and JavaScript modules, as a browser takes them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
