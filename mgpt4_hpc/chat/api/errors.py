"""Refusals in the shape that OpenAI's API gives them."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from mgpt4_hpc.errors import MgptError


class ApiError(Exception):
    """A request that is not answered.

    Args:
        message: for people.
        status: of HTTP.
        param: the field at fault, as ``messages.0.content``.
        code: for programs.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @classmethod
    def of(cls, error: Exception) -> ApiError:
        """What an error of the package means for a client."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, MgptError):
            return cls("; ".join(filter(None, (error.what, error.fix))))
        return cls("the server failed to answer; its log has the reason", status=500)

    def body(self) -> dict[str, Any]:
        """As JSON values."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """As the answer to the request, whose body may not have been read."""
        return JSONResponse(self.body(), self.status, headers={"connection": "close"})


def busy() -> ApiError:
    """More requests wait, or are being received, than the server has room for."""
    return ApiError("the server is busy; try again soon", status=503, code="overloaded")
