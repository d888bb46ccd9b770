"""The one family of errors.

FlameError
├── Refused                    a rule said no; repeating the same request changes nothing
│   ├── NotAllowed             the actor may not do this                                     403
│   ├── DoesNotMatchApproval   digest differs from the one that was approved                 409
│   ├── NotApproved            no live approval by this hospital                             409
│   ├── NotConfirmed           a key is not pinned here                                      409
│   ├── BadSignature           missing, foreign or wrong signature                           409
│   ├── Expired                too old, or not yet valid                                     409
│   ├── Replayed               a number that counts once was used again                      409
│   ├── ReleaseRefused         the egress guard holds something back                         403
│   ├── IsolationTooLow        the sandbox cannot keep what the data demand                  403
│   └── Conflict               the state of the thing does not allow it                      409
├── Invalid                    the request itself is wrong; names the field                  400
│   └── Malformed              bytes that are not what they claim to be                      400
├── NotFound                   no such thing, or not visible to the actor                    404
├── NotAuthenticated           who are you                                                   401
├── Exhausted                  a quota, a disk or a cap is used up                           507
├── Unavailable                try again later                                               503
└── RunFailed                  an analysis ended without a result; says where and why

A field is what a caller may act on; the message is for a person, and says what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class FlameError(Exception):
    """Base of every error that FLAME raises on purpose."""

    code: str = "flame_error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, next_step: str = "", **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.fields: Mapping[str, object] = fields
        if isinstance(named := fields.get("code"), str) and named:
            self.code = named  # a case of its own within the class, for programs that act on it

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()


class Refused(FlameError):
    code, status = "refused", 409


class NotAllowed(Refused):
    code, status = "permission_denied", 403


class DoesNotMatchApproval(Refused):
    code = "does_not_match_approval"


class NotApproved(Refused):
    code = "not_approved"


class NotConfirmed(Refused):
    code = "not_confirmed"


class BadSignature(Refused):
    code = "bad_signature"


class Expired(Refused):
    code = "expired"


class Replayed(Refused):
    code = "replayed"


class ReleaseRefused(Refused):
    code, status = "release_refused", 403


class IsolationTooLow(Refused):
    code, status = "isolation_too_low", 403


class Conflict(Refused):
    code = "entity_conflict"


class Invalid(FlameError):
    code, status = "bad_request", 400


class Malformed(Invalid):
    code = "malformed"


class NotFound(FlameError):
    code, status = "entity_not_found", 404


class NotAuthenticated(FlameError):
    code, status = "identity_unauthorized", 401


class Exhausted(FlameError):
    code, status = "storage_insufficient", 507


class Unavailable(FlameError):
    code, status = "unavailable", 503


class RunFailed(FlameError):
    code, status = "run_failed", 500
