"""`python -m graft` is `graft`."""

from __future__ import annotations

from graft.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
