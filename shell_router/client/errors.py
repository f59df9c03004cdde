"""What goes wrong between a client and the shell router.

ClientError            a call has no answer
└── StreamError        the answer broke off after the run had begun; `run_id` says which
"""

from __future__ import annotations

from shell_router.errors import GraftError


class ClientError(GraftError):
    """A call failed; the message says why, in the router's own words where it gave any."""

    def __init__(self, reason: str, *, status: int | None = None, code: str | None = None, param: str | None = None):
        super().__init__(reason)
        self.status = status
        """Of the HTTP answer; None when there was none."""
        self.code = code
        """OpenAI's machine-readable reason, e.g. `too_many_runs`."""
        self.param = param
        """The field of the request that is wrong."""


class StreamError(ClientError):
    """The run began and its answer did not end."""

    def __init__(self, reason: str, run_id: str | None, *, code: str | None = None) -> None:
        super().__init__(reason, code=code)
        self.run_id = run_id
        """None when not even a first chunk came."""
