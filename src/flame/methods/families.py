"""The distributions of a generalised linear model: what each adds to the sums, at one hospital.

McCullagh & Nelder 1989; negative binomial with variance mu + alpha mu**2 (NB2): Hilbe 2011.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flame.model.errors import Invalid, NotBinary, OutOfDomain, Unavailable

Floats = NDArray[np.float64]
FamilyName = Literal["gaussian", "binomial", "poisson", "gamma", "negative-binomial"]
LinkName = Literal["identity", "logit", "log", "inverse"]

_LINKS: Mapping[str, tuple[str, ...]] = {
    "gaussian": ("identity", "log"),
    "binomial": ("logit", "log"),
    "poisson": ("log", "identity"),
    "gamma": ("log", "inverse", "identity"),
    "negative-binomial": ("log",),
}
_FARTHEST = 150.0
"""exp of more than this, squared, leaves the range of numbers; a step that goes there is halved anyway."""


@dataclass(frozen=True)
class Family:
    name: FamilyName
    link: LinkName

    @property
    def has_dispersion(self) -> bool:
        return self.name in ("gaussian", "gamma")

    @property
    def is_canonical(self) -> bool:
        """The derivative of the mean is its variance."""
        return (self.name, self.link) in (("gaussian", "identity"), ("binomial", "logit"), ("poisson", "log"))

    def check(self, y: Floats, column: str) -> None:
        """Raises UnfitData when an outcome is impossible."""
        if self.name == "binomial" and not np.isin(y, (0.0, 1.0)).all():
            raise NotBinary(column)
        if self.name in ("poisson", "negative-binomial") and (y < 0).any():
            raise OutOfDomain(column)
        if self.name == "negative-binomial" and (y != np.floor(y)).any():
            raise OutOfDomain(column)
        if self.name == "gamma" and (y <= 0).any():
            raise OutOfDomain(column)

    def linear(self, mean: float) -> float:
        """The link of a mean, for a first guess."""
        if self.link == "identity":
            return mean
        if self.link == "inverse":
            return 1.0 / mean
        if self.link == "log":
            return math.log(mean)
        return math.log(mean / (1.0 - mean))

    def mean(self, eta: Floats) -> tuple[Floats, Floats]:
        """(mu, dmu/deta) at the linear predictor."""
        if self.link == "identity":
            mu = eta if self.name == "gaussian" else np.maximum(eta, 1e-10)
            return mu, np.ones_like(eta)
        if self.link == "inverse":
            safe = np.maximum(eta, 1e-10)
            return 1.0 / safe, -1.0 / safe**2
        if self.link == "log":
            top = -1e-10 if self.name == "binomial" else _FARTHEST
            mu = np.exp(np.clip(eta, -_FARTHEST, top))
            return mu, mu
        small = np.exp(-np.minimum(np.abs(eta), 700.0))
        mu = np.where(eta >= 0, 1.0, small) / (1.0 + small)
        return mu, small / (1.0 + small) ** 2

    def variance(self, mu: Floats, alpha: float) -> Floats:
        if self.name == "gaussian":
            return np.ones_like(mu)
        if self.name == "binomial":
            return np.maximum(mu * (1.0 - mu), 1e-30)
        if self.name == "poisson":
            return mu
        if self.name == "gamma":
            return mu**2
        return mu + alpha * mu**2

    def sums(self, y: Floats, mu: Floats, eta: Floats, weight: Floats, alpha: float) -> dict[str, Any]:
        """Deviance and what the log-likelihood is made of, over one hospital's rows."""
        if self.name == "gaussian":
            return {"deviance": float((weight * (y - mu) ** 2).sum()), "likelihood": 0.0}
        if self.name == "binomial":
            if self.link == "logit":
                likelihood = float((weight * (y * eta - np.logaddexp(0.0, eta))).sum())
            else:
                likelihood = float((weight * (y * np.log(mu) + (1 - y) * np.log1p(-mu))).sum())
            return {"deviance": -2.0 * likelihood, "likelihood": likelihood}
        ratio = _xlog(y, y / mu)
        if self.name == "poisson":
            deviance = 2 * (weight * (ratio - (y - mu))).sum()
            likelihood = (weight * (_xlog(y, mu) - mu - _log_gamma(y + 1))).sum()
            return {"deviance": float(deviance), "likelihood": float(likelihood)}
        if self.name == "gamma":
            log_ratio = np.log(y / mu)
            return {
                "deviance": float(2 * (weight * (y / mu - 1 - log_ratio)).sum()),
                "likelihood": float((weight * (log_ratio - y / mu)).sum()),
                "log_outcome": float((weight * np.log(y)).sum()),
            }
        size = 1.0 / alpha
        inner = (y + size) * (np.log1p(alpha * y) - np.log1p(alpha * mu))
        likelihood = (
            _log_gamma(y + size)
            - _log_gamma(size)
            - _log_gamma(y + 1)
            + _xlog(y, alpha * mu)
            - (y + size) * np.log1p(alpha * mu)
        )
        first, second = _alpha_derivatives(y, mu, alpha)
        return {
            "deviance": float(2 * (weight * (ratio - inner)).sum()),
            "likelihood": float((weight * likelihood).sum()),
            "alpha": np.array([(weight * first).sum(), (weight * second).sum()]),
        }

    def log_likelihood(self, total: Mapping[str, Any], weights: float, scale: float) -> float:
        """From the summed parts. Gaussian: at the maximum-likelihood variance; gamma: at the estimated dispersion."""
        if self.name == "gaussian":
            variance = float(total["deviance"]) / weights
            return -0.5 * weights * (math.log(2 * math.pi * variance) + 1) if variance > 0 else math.inf
        if self.name == "gamma":
            if not scale > 0:
                return math.inf
            shape = 1.0 / scale
            constant = weights * (shape * math.log(shape) - math.lgamma(shape))
            return shape * float(total["likelihood"]) - float(total["log_outcome"]) + constant
        return float(total["likelihood"])


def family(name: str, link: str | None = None) -> Family:
    """Raises Invalid for a family or link that there is not."""
    if name not in _LINKS:
        raise Invalid(f"'{name}' is not a family; there are {', '.join(_LINKS)}.")
    chosen = link or _LINKS[name][0]
    if chosen not in _LINKS[name]:
        raise Invalid(f"The family {name} has the links {', '.join(_LINKS[name])}, not '{chosen}'.")
    return Family(name, chosen)  # type: ignore[arg-type]


def _xlog(x: Floats, y: Floats) -> Floats:
    """x log y, zero where x is."""
    return np.asarray(x * np.log(np.where(x > 0, y, 1.0)))


def _log_gamma(x: Floats | float) -> Any:
    return _special().gammaln(x)


def _alpha_derivatives(y: Floats, mu: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Of the log-likelihood by log(alpha), first and second."""
    special = _special()
    size = 1.0 / alpha
    by_size = (
        special.digamma(y + size) - special.digamma(size) + np.log(size / (size + mu)) + 1 - (y + size) / (size + mu)
    )
    twice = (
        special.polygamma(1, y + size)
        - special.polygamma(1, size)
        + 1 / size
        - 2 / (size + mu)
        + (y + size) / (size + mu) ** 2
    )
    # size = exp(-log alpha): d/dlog(alpha) = -size d/dsize
    return np.asarray(-size * by_size), np.asarray(size**2 * twice + size * by_size)


def _special() -> Any:
    try:
        from scipy import special
    except ImportError:
        raise Unavailable(
            "This family needs SciPy, which is not installed here.",
            next_step="pip install 'flame-federated[methods]'",
        ) from None
    return special
