"""Refusal: a call that the API does not take, as its error body says it. Pure."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818 - the word for it
    """Answered with ``status`` and ``code`` (API.md section 2); nothing was changed.

    ``fields`` maps a field to the code and the message of what is wrong with it.
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
        """The body of the answer."""
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


def invalid(field: str, message: str, code: str = "invalid_value") -> Refusal:
    """One field is wrong, or missing (code ``required``)."""
    return Refusal(422, "validation_errors", "validation failed", {field: (code, message)})


def not_found(what: str, id: str) -> Refusal:
    """There is no such thing."""
    return Refusal(404, "not_found", f"{what} {id!r} not found")


def invalid_action(message: str) -> Refusal:
    """The state of the thing does not allow the call."""
    return Refusal(409, "invalid_action", message)
