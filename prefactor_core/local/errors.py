"""ApiError: an error response of the API. Pure."""

from __future__ import annotations


class ApiError(Exception):
    """An error response; the call that raises it changes nothing.

    ``status`` is the HTTP status, ``code`` the name of the error in the body. ``fields`` maps each
    wrong field to a code and a message.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        fields: dict[str, tuple[str, str]] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.fields = fields

    def body(self) -> dict[str, object]:
        """The body of the response: ``{"status": "error", "code": …, "message": …}``."""
        body: dict[str, object] = {
            "status": "error",
            "code": self.code,
            "message": self.message,
        }
        if self.fields:
            body["errors"] = {
                name: {"status": "error", "code": code, "message": message}
                for name, (code, message) in self.fields.items()
            }
        return body


def invalid(field: str, message: str, code: str = "invalid_value") -> ApiError:
    """The error for one field that is wrong, or missing (code ``required``)."""
    return ApiError(422, "validation_errors", "validation failed", {field: (code, message)})


def check_filled(field: str, text: str) -> None:
    """Raise :class:`ApiError` (422) for a text that is empty or blank."""
    if not text.strip():
        raise invalid(field, "is required", "required")


def not_found(what: str, id: str) -> ApiError:
    """The error for an id that is unknown."""
    return ApiError(404, "not_found", f"{what} {id!r} not found")


def invalid_action(message: str) -> ApiError:
    """The error for a call that the state of its object does not allow."""
    return ApiError(409, "invalid_action", message)
