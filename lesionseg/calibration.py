"""How sure a type vote may be: one temperature for all, fitted on lesions that no weights learned from. Arrays only.

Temperature scaling: Guo et al., On calibration of modern neural networks, ICML 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

#: Temperatures looked among.
BOUNDS = (0.05, 20.0)
#: Fewer lesions than this, or fewer types among them, fit no temperature.
MIN_LESIONS, MIN_TYPES = 20, 2
#: Bins of the calibration error, of one width.
BINS = 10
#: Parts of the cross-fit by patient, where the folds give none.
MOST_PARTS = 5
#: Resamples of an interval.
RESAMPLES = 1000

#: Starting points between the bounds: the loss may have more than one low.
_GRID = np.log(np.geomspace(*BOUNDS, 25))
#: Closer to the lower bound than this, as a logarithm, counts as on it.
_AT_BOUND = 0.01
#: Least probability that a logarithm is taken of.
_TINY = float(np.finfo(np.float64).tiny)
_DIGITS = 4


class TypedLesion(NamedTuple):
    """A predicted lesion whose true type is known.

    Attributes:
        scores: (N, K), scores of the K lesion types at its N pixels; only their differences count.
        type: index of its true type among the K.
        patient: whose it is.
        fold: the fold whose net predicted it.
        reference: names the reference lesion that it covers most of; predictions of several nets share it.
    """

    scores: np.ndarray
    type: int
    patient: str
    fold: int
    reference: str


@dataclass(frozen=True, eq=False)
class Voters:
    """Pixels of n lesions side by side, so that all vote at once.

    Attributes:
        scores: float64 (N, K).
        owner: number of the lesion of each pixel, 1 … n, (N,).
        types: true type of each lesion, (n,).
    """

    scores: np.ndarray
    owner: np.ndarray
    types: np.ndarray

    @classmethod
    def of(cls, lesions: Sequence[TypedLesion]) -> Voters:
        """Put lesions side by side; at least one, and each with a pixel."""
        scores = np.concatenate([lesion.scores for lesion in lesions], dtype=np.float64)
        owner = np.repeat(np.arange(1, len(lesions) + 1), [len(lesion.scores) for lesion in lesions])
        return cls(scores, owner, np.array([lesion.type for lesion in lesions]))

    def votes(self, temperature: float) -> np.ndarray:
        """`vote` of each lesion at a temperature, (n, K)."""
        return vote(softmax(self.scores / temperature, axis=1), self.owner, len(self.types))

    def loss(self, temperature: float) -> float:
        """Mean negative log-likelihood of the true types."""
        return float(_surprise(self.votes(temperature), self.types).mean())


def vote(probabilities: np.ndarray, owner: np.ndarray, n: int) -> np.ndarray:
    """Probability of each type for each of n lesions, (n, K): the mean over the pixels of a lesion.

    Args:
        probabilities: of the K types at each pixel, (N, K): the softmax of their scores / temperature. Background and
            liver have no part in it: that it is a lesion is decided.
        owner: number of the lesion of each pixel, 1 … n, (N,); 0: none. Every lesion has a pixel.
        n: number of lesions.
    """
    sums = np.stack([np.bincount(owner, column, n + 1) for column in probabilities.T], axis=1)
    return sums[1:] / np.bincount(owner, minlength=n + 1)[1:, None]


def true_types(ids: np.ndarray, reference: np.ndarray, first_type: int) -> dict[int, int]:
    """True type of each predicted lesion that touches a reference lesion.

    Args:
        ids: number of the predicted lesion of each pixel, 0 elsewhere; any shape.
        reference: class indices, same shape.
        first_type: class index of the first lesion type.

    Returns:
        By the number of the lesion, the type (from 0) of most reference lesion pixels in it, the lower one in a tie.
    """
    both = (ids > 0) & (reference >= first_type)
    pairs = np.stack([ids[both].astype(np.int64), reference[both].astype(np.int64) - first_type])
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    most: dict[int, tuple[int, int]] = {}
    for (lesion, kind), count in zip(found.T.tolist(), counts.tolist(), strict=True):  # by lesion, then by type
        if count > most.get(lesion, (0, 0))[0]:
            most[lesion] = count, kind
    return {lesion: kind for lesion, (_, kind) in most.items()}


def fit_temperature(voters: Voters) -> float:
    """The temperature within `BOUNDS` under which the true types are most likely."""
    best = int(np.argmin([voters.loss(math.exp(x)) for x in _GRID]))
    around = _GRID[max(best - 1, 0)], _GRID[min(best + 1, len(_GRID) - 1)]
    found = minimize_scalar(lambda x: voters.loss(math.exp(x)), bounds=around, method="bounded")
    return math.exp(found.x)


def errors(votes: np.ndarray, types: np.ndarray, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """How far votes (n, K) are from the true types (n,).

    Args:
        votes: rows sum to 1.
        types: index of the true type.
        weights: of the lesions in each mean, (n,) or (R, n) for R means at once; None: all alike.

    Returns:
        `nll`: negative log-likelihood of the true type, natural logarithm. `ece`: expected calibration error, share
        right against mean probability of the best type in `BINS` bins of one width (Guo et al., equation 3). `brier`:
        squared distance to the true type over all types, 0…2 (Brier 1950). `accuracy`: share rightly typed. Each a
        number, or (R,).
    """
    weights = np.ones(len(types)) if weights is None else weights
    top, right = votes.max(1), votes.argmax(1) == types
    bins = np.clip(np.ceil(top * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = (right - top)[:, None] * np.eye(BINS)[bins]
    sums = {
        "nll": weights @ _surprise(votes, types),
        "ece": np.abs(weights @ gaps).sum(-1),
        "brier": weights @ ((votes - np.eye(votes.shape[1])[types]) ** 2).sum(1),
        "accuracy": weights @ right,
    }
    return {name: value / weights.sum(-1) for name, value in sums.items()}


def calibrate(lesions: Sequence[TypedLesion], names: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """The temperature of all lesions, and plain JSON data that says what it is worth.

    The figures `after` are cross-fitted: each lesion votes under the temperature of its part, which was fitted on the
    other parts without the patients of this one. Parts are the folds, or groups of patients where one fold holds too
    much of them.

    Args:
        lesions: of every net of an ensemble.
        names: of the types.

    Returns:
        The temperature and its record, which counts reference lesions (`lesions`, `types`), each once however many nets
        predict it, and predictions (`votes`), of which the figures are means. 1.0 and `{"reason": …}` where the lesions
        are too few, or would make votes surer without end. (The other end of the range is kept: there the nets know
        nothing of types, and every vote comes close to a tie.)
    """
    distinct = _distinct(lesions)
    counts = {name: sum(kind == i for _, kind in distinct) for i, name in enumerate(names)}
    kinds, patients = sum(n > 0 for n in counts.values()), sorted({lesion.patient for lesion in lesions})
    if len(distinct) < MIN_LESIONS or kinds < MIN_TYPES or len(patients) < 2:
        return 1.0, {
            "reason": f"{len(distinct)} typed lesions of {kinds} types and {len(patients)} patients to fit it on; "
            f"{MIN_LESIONS}, {MIN_TYPES} and 2 are needed"
        }
    voters = Voters.of(lesions)
    temperature = fit_temperature(voters)
    if math.log(temperature / BOUNDS[0]) < _AT_BOUND:
        return 1.0, {
            "reason": f"nothing holds the temperature of {len(distinct)} typed lesions: votes would become surer "
            "without end, as where every type is right"
        }
    by, parts = _parts(lesions, patients)
    before, after, table = voters.votes(1.0), np.zeros((len(lesions), len(names))), []
    for part in sorted(set(parts)):
        inside = np.flatnonzero([other == part for other in parts])
        fitted = fit_temperature(Voters.of(_others(lesions, parts, part)))
        after[inside] = voters.votes(fitted)[inside]
        held = _distinct([lesion for lesion, other in zip(lesions, parts, strict=True) if other == part])
        table.append({"part": part, "lesions": len(held), "temperature": round(fitted, _DIGITS)})
    record = {
        "method": f"temperature scaling of the type votes, cross-fitted over {by}",
        "lesions": len(distinct),
        "votes": len(lesions),
        "patients": len(patients),
        "types": counts,
        "parts": table,
        "bins": BINS,
        **_before_and_after(
            before, after, voters.types, np.array([patients.index(lesion.patient) for lesion in lesions])
        ),
    }
    return round(temperature, _DIGITS), record


def _distinct(lesions: Sequence[TypedLesion]) -> set[tuple[str, int]]:
    """Reference lesions, with their types, that are predicted: by several nets, each counts once.

    The type is a part, as touching lesions of two types are two.
    """
    return {(lesion.reference, lesion.type) for lesion in lesions}


def _parts(lesions: Sequence[TypedLesion], patients: list[str]) -> tuple[str, list[str]]:
    """What the cross-fit goes over, and the part of each lesion."""
    parts = [f"fold {lesion.fold}" for lesion in lesions]
    left = [len(_distinct(_others(lesions, parts, part))) for part in set(parts)]
    if len(left) > 1 and min(left) >= MIN_LESIONS // 2:
        return "folds", parts
    n = min(MOST_PARTS, len(patients))
    return "patients", [f"patients {1 + patients.index(lesion.patient) % n} of {n}" for lesion in lesions]


def _others(lesions: Sequence[TypedLesion], parts: Sequence[str], part: str) -> list[TypedLesion]:
    """Lesions of the other parts, without the patients of this one: two folds may hold the same inner validation."""
    inside = {lesion.patient for lesion, other in zip(lesions, parts, strict=True) if other == part}
    return [lesion for lesion in lesions if lesion.patient not in inside]


def _before_and_after(before: np.ndarray, after: np.ndarray, types: np.ndarray, patient: np.ndarray) -> dict[str, Any]:
    """Errors of votes (n, K) before and after, with 95 % percentile intervals from resampled patients (n,)."""
    n = int(patient.max()) + 1
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)[:, patient]
    found, resampled = _compared(before, after, types, None), _compared(before, after, types, draws)
    return {
        **{name: {key: round(float(value), _DIGITS) for key, value in each.items()} for name, each in found.items()},
        "intervals_95": {
            name: {key: np.percentile(value, (2.5, 97.5)).round(_DIGITS).tolist() for key, value in each.items()}
            for name, each in resampled.items()
        },
        "improved": bool(found["change"]["nll"] < 0),
    }


def _compared(
    before: np.ndarray, after: np.ndarray, types: np.ndarray, weights: np.ndarray | None
) -> dict[str, dict[str, np.ndarray]]:
    old, new = errors(before, types, weights), errors(after, types, weights)
    return {"before": old, "after": new, "change": {name: new[name] - old[name] for name in old}}


def _surprise(votes: np.ndarray, types: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(votes[np.arange(len(types)), types], _TINY))
