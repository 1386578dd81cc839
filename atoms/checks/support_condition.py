"""How well the coefficients of a row are determined: the Gram matrices of what rows use, beside what is said of them.

Let ``y = a D_T`` be a row's component in the span of the unit atoms it uses. If it is off by ``e``, the coefficients of
least squares are off by ``e D_T⁺``, at most ``‖e‖ / σ_min(D_T)`` in length, and ``‖y‖ <= σ_max(D_T) ‖a‖``: a relative
error of the component grows in the coefficients at most by ``σ_max / σ_min``, the square root of the Gram matrix's
condition number. It does so for some component and some error.

Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoms.checks.claim import Claim, Verdict
from atoms.checks.isometry import Extremes, Isometry, at_share, condition_bound
from atoms.checks.separability import Separability

_ROUNDING = 1e-9  # of eigenvalues and of their bounds, both from cosines in float64
_TIED = 1e-9  # relative difference of condition numbers that are the same
_NEARLY_ALL = 0.9  # of rows; a half is chance
_POINTS = 200
_SOURCE = "Towards Atoms (arXiv 2509.20784), T2; Gershgorin"


@dataclass(frozen=True, eq=False)
class SupportCondition:
    """Observed supports beside random ones of the same sizes, and beside what coherence promises of them.

    Attributes:
        observed: Extreme eigenvalues on the supports that rows use.
        random: On as many random atoms, support by support.
        bound: Condition number that coherence allows each observed support, (supports,) float64; NaN where it promises
            none; all of them where coherence is not known.
        mu: Largest ``|cos_S|`` of two atoms; NaN where it is not known.
        mu_random: The same of as many random directions, its median.
        mu_least: The same of a dictionary of least coherence, if there is one that reaches Welch's bound.
    """

    observed: Extremes
    random: Extremes
    bound: Tensor
    mu: float
    mu_random: float
    mu_least: float

    @classmethod
    def of(cls, isometry: Isometry, separability: Separability | None) -> SupportCondition:
        """Put together what two checks found.

        Args:
            isometry: What was measured on supports.
            separability: Cosines of all pairs of atoms, if they are known.
        """
        mu, drawn, least = (
            (math.nan,) * 3 if separability is None else (separability.maximum, separability.random, separability.welch)
        )
        bound = torch.tensor([condition_bound(int(k), mu) for k in isometry.observed.k], dtype=torch.float64)
        return cls(isometry.observed, isometry.random, bound, mu, drawn, least)

    @property
    def several(self) -> Tensor:
        """Supports of two atoms or more, (supports,) bool: of one atom there is nothing to be said."""
        return self.observed.k > 1

    @property
    def promised(self) -> Tensor:
        """Those of `several` of which coherence promises a condition number, (supports,) bool."""
        return self.several & self.bound.isfinite()

    def slack(self, of: Extremes) -> Tensor:
        """Condition number over its bound, of those of `promised`, ascending.

        Args:
            of: `observed` or `random`.
        """
        return (of.condition / self.bound)[self.promised].sort().values

    @property
    def broken(self) -> Tensor:
        """Observed supports whose eigenvalues are where coherence says none can be, (supports,) bool."""
        spread = (self.observed.k.double() - 1) * self.mu + _ROUNDING
        outside = (self.observed.highest > 1 + spread) | (self.observed.lowest < 1 - spread)
        return self.promised & outside

    def numbers(self) -> dict[str, float]:
        """Scalars of the section."""
        found = {
            "promised": _share(self.promised, self.several),
            "promised_random": self._promised_at(self.mu_random),
            "promised_least": self._promised_at(self.mu_least),
            "slack_q50": at_share(self.slack(self.observed), 0.5),
            "slack_max": at_share(self.slack(self.observed), 1.0),
        }
        for name, what in (("", self.observed), ("_random", self.random)):
            growth = what.condition.sqrt().sort().values
            found |= {
                f"growth{name}_{at}": at_share(growth, q) for at, q in (("q50", 0.5), ("q95", 0.95), ("max", 1.0))
            }
            ranks = (what.effective_rank / what.k)[self.several].sort().values
            found |= {f"support_rank{name}_{at}": at_share(ranks, q) for at, q in (("q05", 0.05), ("q50", 0.5))}
        return found | {"worse_than_random": self._worse_than_random()}

    def claim(self) -> Claim:
        """Whether the Gram matrices of what rows use are conditioned as coherence promises: a theorem, held to rows."""
        several, promised, broken = (int(mask.sum()) for mask in (self.several, self.promised, self.broken))
        slack, slack_random = (at_share(self.slack(what), 1.0) for what in (self.observed, self.random))
        if broken:
            first = int(self.broken.nonzero()[0])
            verdict = Verdict.REFUTED
            why = (
                f"row {int(self.observed.rows[first])}: {int(self.observed.k[first])} atoms have eigenvalues from "
                f"{self.observed.lowest[first]:.6g} to {self.observed.highest[first]:.6g}, which a largest |cos| of "
                f"{self.mu:.6g} forbids; this contradicts a theorem: please report it"
            )
        elif promised:
            verdict = Verdict.NOT_REFUTED
            why = f"at most {slack:.3f} of the bound, on the {promised:,} of {several:,} supports that have one"
        else:
            verdict = Verdict.NOT_APPLICABLE
            why = (
                "the largest |cos| is not known"
                if math.isnan(self.mu)
                else "no sampled row uses two atoms"
                if not several
                else f"coherence, {self.mu:.4f}, promises nothing of any of {several:,} supports"
            )
        return Claim(
            name="bound",
            statement=(
                "The Gram matrix of the atoms that a held-out row uses is conditioned as any dictionary's must be: "
                "at most (1 + (K - 1) mu)/(1 - (K - 1) mu)."
            ),
            verdict=verdict,
            why=why,
            source=_SOURCE,
            computed_on=f"{several:,} supports of two atoms or more",
            value=slack if promised else None,
            threshold=1.0,
            inputs={"promised": float(promised), "broken": float(broken), "mu": self.mu},
            nulls={"random atoms": slack_random} if promised else {},
        )

    def table(self) -> dict[str, list[float] | list[str]]:
        """Growth of errors by share of supports, each curve in its own order: observed, random, as bounded."""
        shares = [(place + 1) / _POINTS for place in range(_POINTS)]
        curves = {"observed": self.observed.condition, "random": self.random.condition, "bound": self.bound}
        return {
            "share": list(shares),
            **{name: _curve(values.sqrt().sort().values, shares) for name, values in curves.items()},
        }

    def notes(self) -> list[str]:
        """What to be warned of."""
        worse = self._worse_than_random()
        if not worse > _NEARLY_ALL:
            return []
        return [f"Atoms that rows use together are nearer to dependence than random atoms, on {worse:.0%} of rows."]

    def _promised_at(self, mu: float) -> float:
        """Share of the supports of which another coherence would promise something."""
        return math.nan if math.isnan(mu) else _share((self.observed.k.double() - 1) * mu < 1, self.several)

    def _worse_than_random(self) -> float:
        """Share of supports conditioned worse than as many random atoms, ties half; .5 for random ones."""
        own, other = (
            torch.where(what.singular, math.inf, what.highest / what.lowest)[self.several]
            for what in (self.observed, self.random)
        )
        if not len(own):
            return math.nan
        tied = (own == other) | ((own - other).abs() <= _TIED * other)
        return torch.where(tied, 0.5, (own > other).double()).mean().item()


def _share(which: Tensor, of: Tensor) -> float:
    return (which & of).sum().item() / of.sum().item() if bool(of.any()) else math.nan


def _curve(ascending: Tensor, shares: list[float]) -> list[float]:
    places = np.ceil(np.array(shares) * len(ascending)).astype(np.int64) - 1
    return ascending[torch.from_numpy(places)].tolist()
