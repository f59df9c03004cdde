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
├── InvalidApiKey              401, `invalid_api_key`
├── TooManyRuns                429, `too_many_runs`; `Retry-After` says when to come back
├── ShuttingDown               503, `shutting_down`; another router, or this one once it is back
├── EngineError                a worker or sglang-router failed (502; a retry may help)
│   ├── EngineUnreachable      no connection (503)
│   ├── EngineSilent           nothing came for `idle_timeout_s` (504)
│   └── EngineTooSlow          it did not end within `request_timeout_s` (504)
└── RunFailed                  an agent of a run failed (502); names the agent
    └── DeadlineExceeded       504, `deadline_exceeded`
"""

from __future__ import annotations

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


class PromptTooLong(RequestError):
    """An agent's prompt and answer could be longer than its model's context."""

    code = "context_length_exceeded"


class BodyTooLarge(RequestError):
    """The body is larger than this router reads."""

    status = 413
    code = "body_too_large"


class InvalidApiKey(RouterError):
    """The request carries no API key, or a wrong one."""

    status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


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


class EngineError(RouterError):
    """A worker or sglang-router answered with an error or broke off."""

    status = 502
    kind = "engine_error"
    refused = False
    """Whether the request itself is what the engine does not take: asking again is of no use."""


class EngineUnreachable(EngineError):
    """No connection to a worker or sglang-router."""

    status = 503


class EngineSilent(EngineError):
    """A worker or sglang-router was reached and then sent nothing for too long."""

    status = 504


class EngineTooSlow(EngineError):
    """A request to a worker or sglang-router took longer than it may."""

    status = 504


class RunFailed(RouterError):
    """A run did not end well; the message names the agent and the cause."""

    status = 502
    kind = "run_failed"


class DeadlineExceeded(RunFailed):
    """The deadline of a run passed before its answer was there."""

    status = 504
    code = "deadline_exceeded"
