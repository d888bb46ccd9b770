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
│   ├── Incompatible           hub and node speak no common version of the protocol          426
│   ├── IsolationTooLow        the sandbox cannot keep what the data demand                  403
│   └── Conflict               the state of the thing does not allow it                      409
├── Invalid                    the request itself is wrong; names the field                  400
│   ├── Malformed              bytes that are not what they claim to be                      400
│   └── UnfitData              what a column holds is not what the analysis needs            400
│       ├── NotNumeric, NotBinary, MixedTypes, HasMissing, HasInfinite, OutOfRange, OutOfDomain
│       └── UnknownLevel, TooManyLevels, Singular, Separated
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


class Incompatible(Refused):
    code, status = "incompatible_release", 426


class IsolationTooLow(Refused):
    code, status = "isolation_too_low", 403


class Conflict(Refused):
    code = "entity_conflict"


class Invalid(FlameError):
    code, status = "bad_request", 400


class Malformed(Invalid):
    code = "malformed"


class UnfitData(Invalid):
    """What a column holds is not what the analysis needs. ``fields["column"]``: the column to look at.

    Only the column's name varies, so these errors may be told beyond the hospital where they arose, once that name is
    known to come from the approved code or its manifest.
    """

    code = "unfit_data"
    says: ClassVar[str] = "The column '{}' does not hold what the analysis needs."
    advice: ClassVar[str] = ""

    def __init__(self, column: str) -> None:
        super().__init__(self.says.replace("{}", column), next_step=self.advice.replace("{}", column), column=column)


class NotNumeric(UnfitData):
    code = "not_numeric"
    says = "The column '{}' holds text where numbers are needed."
    advice = "Code it as numbers (0/1 for two levels) at the source, or leave it out."


class NotBinary(UnfitData):
    code = "not_binary"
    says = "The outcome '{}' is not binary: it holds other values than 0 and 1, or than the two levels that were named."
    advice = "Code it as 0/1 at the source, or name its two levels: levels=(no event, event)."


class HasMissing(UnfitData):
    code = "has_missing"
    says = "The column '{}' has missing values."
    advice = "Use missing='drop' for complete cases."


class HasInfinite(UnfitData):
    code = "has_infinite"
    says = "The column '{}' has infinite values."
    advice = "Correct it at the source, or leave it out."


class MixedTypes(UnfitData):
    code = "mixed_types"
    says = "The column '{}' holds numbers at some hospitals and text at others."
    advice = "Code '{}' alike everywhere, or name it as a category: C({})."


class OutOfRange(UnfitData):
    code = "out_of_range"
    says = (
        "The column '{}' has values outside the range that the analysis expects: another unit, or a code for unknown?"
    )
    advice = "Convert '{}' at the source, mark unknown values as missing, or correct the range."


class OutOfDomain(UnfitData):
    code = "out_of_domain"
    says = "The column '{}' has values that the method cannot take, such as negative counts, times or weights."
    advice = "Correct '{}' at the source, or choose another method."


class UnknownLevel(UnfitData):
    code = "unknown_level"
    says = "The column '{}' has a level that is not among those that were declared."
    advice = "Correct the spelling at the source, or declare all levels of '{}'."


class TooManyLevels(UnfitData):
    code = "too_many_levels"
    says = "The column '{}' has too many different values, or too long ones, for a category."
    advice = "Is '{}' an identifier or free text? Group its values, or use it as a number."


class Singular(UnfitData):
    """The covariates do not determine the coefficients; the first column that the ones before it determine."""

    code = "singular"
    says = "The column '{}' is constant, or follows from the other columns."
    advice = "Leave it out: its coefficient is not determined."


class Separated(UnfitData):
    """No finite estimate: the column with the most weight in the direction that separates the outcomes."""

    code = "separated"
    says = "The outcome is separated perfectly, most of all by '{}': the likelihood has no maximum."
    advice = "Look for a coding of the outcome in '{}', join rare levels, or use a penalised method."


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
