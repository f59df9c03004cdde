"""All errors of ours that end a command or a request, as a tree.

GraftError                     ends a command with one line and `exit_code`; the launcher and the experiments add to it
├── ConfigError                a configuration or a command line is wrong (in `shell_router.config`); exit code 2
└── RouterError                what a client of the router is told:

RouterError                    something a client is told, in OpenAI's error form
├── RequestError               the request cannot be served as it is (4xx; no retry helps)
│   ├── UnknownTree            404
│   ├── UnknownRun             404
│   ├── PromptTooLong          400, `context_length_exceeded`
│   └── BodyTooLarge           413, `body_too_large`
├── UnreadableRecord           500, `unreadable_record`
├── InvalidApiKey              401, `invalid_api_key`
├── NotAllowed                 403, `not_allowed`; a key of another kind is wanted
├── TooManyRuns                429, `too_many_runs`; `Retry-After` says when to come back
├── ShuttingDown               503, `shutting_down`; another router, or this one once it is back
├── EngineError                a worker or sglang-router failed (502; a retry may help)
│   ├── EngineUnreachable      no connection (503)
│   ├── EngineSilent           nothing came for `idle_timeout_s` (504)
│   └── EngineTooSlow          it did not end within `request_timeout_s` (504)
└── RunFailed                  an agent of a run failed (502); names the agent
    ├── DeadlineExceeded       504, `deadline_exceeded`; no retry helps
    └── RunDeleted             410, `run_deleted`; no retry helps
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class GraftError(Exception):
    """Base of what ends a command: the message says what is wrong and what to do, in words for a person."""

    exit_code: ClassVar[int] = 1
    """1 something failed while running, 2 the request or a configuration is wrong."""


class RouterError(GraftError):
    """Base of all errors a client is told."""

    status = 500
    kind = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to the answer."""
        return {}


class RequestError(RouterError):
    """The client's request is wrong; `param` names the field."""

    status = 400
    kind = "invalid_request_error"


class UnknownTree(RequestError):
    """`model` names no tree."""

    status = 404
    code = "model_not_found"


class UnknownRun(RequestError):
    """There is no run with this id, or its record has been dropped."""

    status = 404
    code = "run_not_found"


class UnknownAgent(RequestError):
    """The run has no agent of this id."""

    status = 404
    code = "agent_not_found"


class PromptTooLong(RequestError):
    """An agent's prompt and answer could be longer than its model's context."""

    code = "context_length_exceeded"


class BodyTooLarge(RequestError):
    """The body is larger than this router reads."""

    status = 413
    code = "body_too_large"


class UnreadableRecord(RouterError):
    """What became of a run cannot be told, by our own mistake."""

    code = "unreadable_record"

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the record of run {run_id!r} cannot be told; the router's log says why")


class InvalidApiKey(RouterError):
    """The request carries no API key, or a wrong one."""

    status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class NotAllowed(RouterError):
    """The API key is right, and not for this."""

    status = 403
    kind = "invalid_request_error"
    code = "not_allowed"


class TooManyRuns(RouterError):
    """All places are taken, those in the queue as well."""

    status = 429
    kind = "rate_limit_error"
    code = "too_many_runs"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class ShuttingDown(RouterError):
    """No run is admitted any more."""

    status = 503
    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("the router is shutting down")


_URL = re.compile(r"https?://[^\s'\"`<>()\[\],;]*[^\s'\"`<>()\[\],;.:]")
_ADDRESS = re.compile(r"(?:\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9A-Fa-f:]*:[0-9A-Fa-f:]*\]|\blocalhost\b)(?::\d+)?")


class EngineError(RouterError):
    """A worker or sglang-router answered with an error or broke off.

    `message`, for clients, has no address of a machine, whoever wrote it; `str` has all, for the log.
    """

    status = 502
    kind = "engine_error"
    refused = False
    """Whether the request itself is what the engine does not take: asking again is of no use."""

    def __init__(self, message: str, detail: str = "") -> None:
        """`detail` is for the log alone."""
        super().__init__(_ADDRESS.sub("(address)", _URL.sub("the engine", message)))
        self._whole = f"{message}: {detail}" if detail else message

    def __str__(self) -> str:
        return self._whole


class EngineUnreachable(EngineError):
    """No connection to a worker or sglang-router."""

    status = 503


class EngineSilent(EngineError):
    """A worker or sglang-router was reached and then sent nothing for too long."""

    status = 504


class EngineTooSlow(EngineError):
    """A request to a worker or sglang-router took longer than it may."""

    status = 504


_FINAL = {"X-Should-Retry": "false"}
"""OpenAI's clients ask again after most errors, which runs a whole tree again; this they obey."""


class RunFailed(RouterError):
    """A run did not end well; the message names the agent and the cause."""

    status = 502
    kind = "run_failed"


class DeadlineExceeded(RunFailed):
    """The deadline of a run passed before its answer was there."""

    status = 504
    code = "deadline_exceeded"

    @property
    def headers(self) -> dict[str, str]:
        return _FINAL


class RunDeleted(RunFailed):
    """The run was ended by `DELETE /v1/runs/{id}`."""

    status = 410
    code = "run_deleted"

    @property
    def headers(self) -> dict[str, str]:
        return _FINAL
