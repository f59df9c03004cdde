"""`python -m shell_router.assess`: the assessing process, which the router starts and talks to by stdin and stdout."""

from __future__ import annotations

import sys

from shell_router.assess.process import main

if __name__ == "__main__":
    sys.exit(main())
