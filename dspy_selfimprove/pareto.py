"""Trade-offs between objectives: dominance, the front, hypervolume, and a choice on the front.

Points are the rows of a matrix, objectives its columns. `normalise` turns every objective into "larger is better",
once, at the edge; everything else here assumes it has been done (a reference point or a floor is turned the same way).

**Missing is worst, and is never a win.** A missing value (NaN or None) lies below every observed one, and two missing
values of one objective are equal. So a point that lacks an objective never dominates a point that has it, yet it may
stand on the front for what it does show; a point that shows nothing is dominated by any point that shows something.
It spans no hypervolume, since a volume needs every side, and `choose` never picks a point that lacks what was asked
for. Infinite values are refused: they would make every volume infinite, and no measurement is.

Equal points do not dominate each other: all copies of a front point are on the front, and each of them contributes
zero, because removing one copy loses nothing. Drop duplicates first where that matters.

Not covered: uncertainty. A point is taken at its word; intervals are the business of `statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspy_selfimprove.errors import UsageError

Direction: TypeAlias = Literal["maximize", "minimize"]
Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.intp]


def normalise(values: ArrayLike, directions: Sequence[Direction]) -> Floats:
    """The same values with larger better in every objective. Takes a matrix, or one row such as a reference point.

    Applying it twice gives the original back.
    """
    unknown = [direction for direction in directions if direction not in ("maximize", "minimize")]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not a direction.", remedy='Say "maximize" or "minimize".')
    array = _numbers(values)
    if array.shape == (0,):
        return array.reshape(0, len(directions))
    if array.ndim not in (1, 2) or array.shape[-1] != len(directions):
        raise UsageError(
            f"{len(directions)} directions do not fit values of shape {array.shape}.",
            remedy="Give one direction per objective, and one row per point.",
        )
    signs = np.array([1.0 if direction == "maximize" else -1.0 for direction in directions])
    flipped: Floats = array * signs + 0.0  # + 0.0: no negative zeros in a report
    return flipped


def dominates(a: ArrayLike, b: ArrayLike) -> bool:
    """Whether `a` is at least as good as `b` in every objective and better in one."""
    first, second = _numbers(a), _numbers(b)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise UsageError(
            f"Points of shape {first.shape} and {second.shape} cannot be compared.",
            remedy="Give two rows with the same objectives.",
        )
    first, second = _levels(np.stack([first, second]))
    return bool((first >= second).all() and (first > second).any())


def front(values: ArrayLike) -> Indices:
    """The indices of the points that no other point dominates, in ascending order; copies are all included."""
    points = _points(values)
    if not len(points):
        return np.empty(0, dtype=np.intp)
    return np.flatnonzero(moocore.is_nondominated(_levels(points), maximise=True, keep_weakly=True))


def ranks(values: ArrayLike) -> Indices:
    """Non-dominated sorting: 0 for the front, 1 for what is the front once that is removed, and so on."""
    points = _points(values)
    if not len(points):
        return np.empty(0, dtype=np.intp)
    return np.asarray(moocore.pareto_rank(_levels(points), maximise=True), dtype=np.intp)


def hypervolume(values: ArrayLike, reference: ArrayLike) -> float:
    """The exact volume between `reference` and the front: what lies above the one and below some point.

    A point that is not above the reference in every objective adds nothing. Exact for any number of objectives; the
    time grows steeply from six on.
    """
    points = _points(values)
    corner = _corner(points, reference)
    return _volume(points[_above(points, corner)], corner)


def contributions(values: ArrayLike, reference: ArrayLike) -> Floats:
    """What each point alone adds: the hypervolume of all, less the hypervolume without that point."""
    points = _points(values)
    corner = _corner(points, reference)
    added = np.zeros(len(points))
    inside = np.flatnonzero(_above(points, corner))
    if not inside.size:
        return added
    # Only a front point adds anything, and once one is removed only the second layer can come to light.
    layers = ranks(points[inside])
    inside, layers = inside[layers <= 1], layers[layers <= 1]
    shell = points[inside]
    whole = _volume(shell, corner)
    for position in np.flatnonzero(layers == 0):
        rest = _volume(np.delete(shell, position, axis=0), corner)
        added[inside[position]] = max(0.0, whole - rest)
    return added


def choose(
    values: ArrayLike,
    *,
    objective: int | None = None,
    weights: Sequence[float] | None = None,
    floors: Mapping[int, float] | None = None,
) -> int | None:
    """The best point in one `objective`, or by `weights` over all of them, among those that meet every floor.

    "Best A with B at least x" is `objective=A, floors={B: x}`. None means that no point qualifies: each one misses a
    floor, or lacks a value that was asked for. There is no nearest miss, because gaps in different units do not
    compare; the remedy is to lower a floor, and to say so.

    The point chosen is never dominated by another that qualifies. Ties go to the lowest index, so with the baseline
    first a tie keeps the baseline.
    """
    points = _points(values)
    if (objective is None) == (weights is None):
        raise UsageError("A choice needs either an objective or weights.", remedy="Give exactly one of the two.")
    count = points.shape[1]
    if objective is not None:
        preference = np.zeros(count)
        if len(points):
            preference[_objective(objective, count)] = 1.0
    else:
        preference = _preference(weights, count if len(points) else None)
    if not len(points):
        return None

    wanted = preference > 0.0
    qualifies = np.isfinite(points[:, wanted]).all(axis=1)
    for index, floor in (floors or {}).items():
        if not np.isfinite(floor):
            raise UsageError(f"A floor of {floor} excludes or allows everything.", remedy="Give a finite floor.")
        qualifies &= points[:, _objective(index, count)] >= floor  # False where missing
    eligible = np.flatnonzero(qualifies)
    if not eligible.size:
        return None
    eligible = eligible[front(points[eligible])]
    # A sum along the row, not a matrix product: equal rows must give equal totals wherever they stand.
    totals = (points[eligible][:, wanted] * preference[wanted]).sum(axis=1)
    return int(eligible[np.argmax(totals)])


def _numbers(values: ArrayLike) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(
            "The values are not a table of numbers.",
            remedy="Give rows of equal length, NaN where a value is missing.",
        ) from None
    if np.isinf(array).any():
        raise UsageError("An objective is infinite.", remedy="Give a finite value, or NaN if it is missing.")
    return array


def _points(values: ArrayLike) -> Floats:
    array = _numbers(values)
    if array.shape == (0,):
        return array.reshape(0, 0)
    if array.ndim != 2 or (len(array) and not array.shape[1]):
        raise UsageError(
            f"Values of shape {array.shape} are not points with objectives.",
            remedy="Give one row per point and one column per objective.",
        )
    return array


def _levels(points: Floats) -> Floats:
    """Each value replaced by its place within its objective, missing at the bottom: dominance knows only order."""
    known = np.where(np.isnan(points), -np.inf, points)
    places = [np.unique(column, return_inverse=True)[1] for column in known.T]
    return np.column_stack(places).astype(np.float64)


def _corner(points: Floats, reference: ArrayLike) -> Floats:
    corner = _numbers(reference)
    if corner.ndim != 1 or not corner.size or np.isnan(corner).any():
        raise UsageError("The reference is not a point.", remedy="Give one finite number per objective.")
    if len(points) and corner.size != points.shape[1]:
        raise UsageError(
            f"A reference with {corner.size} objectives does not fit points with {points.shape[1]}.",
            remedy="Give one number per objective.",
        )
    return corner


def _above(points: Floats, corner: Floats) -> NDArray[np.bool_]:
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    return np.asarray((points > corner).all(axis=1), dtype=np.bool_)  # False where missing


def _volume(points: Floats, corner: Floats) -> float:
    return float(moocore.hypervolume(points, ref=corner, maximise=True)) if len(points) else 0.0


def _objective(index: int, count: int) -> int:
    if not 0 <= index < count:
        raise UsageError(f"There is no objective {index}.", remedy=f"Give a column from 0 to {count - 1}.")
    return index


def _preference(weights: Sequence[float] | None, count: int | None) -> Floats:
    preference = np.asarray(weights, dtype=np.float64)
    if preference.ndim != 1 or (count is not None and preference.size != count):
        raise UsageError(
            f"Weights of shape {preference.shape} do not fit the objectives.",
            remedy="Give one weight per objective.",
        )
    if not (np.isfinite(preference) & (preference >= 0.0)).all() or not preference.any():
        raise UsageError(
            "Weights must be zero or more, and one of them above zero.",
            remedy="Turn an objective's direction with normalise() instead of weighting it below zero.",
        )
    return preference
