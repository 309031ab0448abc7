"""The distance to a reference: which estimator, and where it is paid.

With y drawn from pi and l = log pi(y) - log ref(y), all three estimators speak of KL(pi || ref), but as terms of a loss
their gradients differ: k1's is zero in expectation, k2's is that of KL(pi || ref), and k3's is that of KL(ref || pi),
the other direction. As a penalty inside the reward k1 is right and unbiased.

In the loss l is each token's own, so of completions with several tokens this holds of each step given those before it,
and ``full`` is the same without an estimate. What a token does to the distance of later ones is paid by k1 in the
reward alone. There k2 and k3 would leave out their own gradient, which near the reference is all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from tiebreak.records import InputError
from tiebreak.registry import nearest


def k1(l: Tensor) -> Tensor:  # noqa: E741
    """The log-ratio itself: unbiased, of either sign (Schulman 2020, "Approximating KL divergence")."""
    return l


def k2(l: Tensor) -> Tensor:  # noqa: E741
    """Half its square: biased, but as a loss its gradient is that of KL(pi || ref)."""
    return l.square() / 2


def k3(l: Tensor) -> Tensor:  # noqa: E741
    """exp(-l) - 1 + l: unbiased and never negative; as a loss it pulls along KL(ref || pi)."""
    return (-l).exp() - 1 + l


ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
FULL = "full"
"""The sum over the whole vocabulary at each token, which needs no estimate: sum_v pi(v) (log pi(v) - log ref(v))."""
PLACES = ("reward", "loss")


def check_kl(kl: str, kl_in: str, beta: float) -> None:
    """Refuse what has no sense: an unknown estimator or place, and k1 in the loss.

    Raises:
        InputError: with the reason.
    """
    if not beta >= 0:
        raise InputError(f"beta is {beta}; the weight of the distance to the reference is 0 or more.")
    if not kl:
        if beta:
            raise InputError("beta is set and kl is empty, so no distance would be paid; set kl: k1, k2, k3 or full.")
        return
    if kl not in (*ESTIMATORS, FULL):
        names = (*ESTIMATORS, FULL)
        raise InputError(f"There is no kl {kl!r}; there are {', '.join(names)}.{nearest(kl, names)}")
    if kl_in not in PLACES:
        raise InputError(f"kl_in is {kl_in!r}; expected reward or loss.{nearest(kl_in, PLACES)}")
    if kl == "k1" and kl_in == "loss":
        raise InputError(
            "kl: k1 in the loss teaches nothing: the expected gradient of log pi(y) under pi is zero; use k2 or full "
            "in the loss, k3 for GRPO's forward direction, or k1 in the reward."
        )
    if kl in ("k2", "k3") and kl_in == "reward":
        raise InputError(
            f"kl: {kl} in the reward pulls only as far as its own gradient differs from that of KL(pi || ref), so near "
            f"the reference nothing holds the policy; use k1 in the reward, or {kl} in the loss."
        )
    if kl == FULL and kl_in == "reward":
        raise InputError("kl: full is a term of the loss; set kl_in: loss, or use k1 in the reward.")


@dataclass
class Leash:
    """The weight of the distance, fixed or adapted to a target (Ziegler et al. 2019, section 2.2).

    With a target, after n episodes with mean distance d: beta *= 1 + clip(d / target - 1, -0.2, 0.2) n / horizon.
    """

    beta: float
    target: float = 0.0
    horizon: float = 10_000.0

    def adapt(self, distance: float, episodes: int) -> None:
        """Pull tighter where the policy is further away than the target, and looser where it is nearer."""
        if self.target > 0:
            error = min(0.2, max(-0.2, distance / self.target - 1))
            self.beta *= 1 + error * episodes / self.horizon
