"""Compiled loops of the layout: neighbours among the reporting stations, covariances towards them, kriging systems.

Shapes: S stations of a record, Q points, J candidates, K neighbours, R covariances, G terrain features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.compiled import aligned, compiled, exp, f32, i32, log

#: Points whose systems are solved side by side: vector registers work on the same step of all of them.
WIDE = 64


@compiled
def choose(candidates, km, reporting, index, out_km):  # type: ignore[no-untyped-def]
    """Take the first K reporting stations of each list of candidates (Q, J), which ends early at -1.

    Fills `index` and `out_km` (Q, K) and returns how many each point found (Q,).
    """
    found = np.zeros(len(candidates), i32)
    for q in range(len(candidates)):
        count = 0
        for j in range(candidates.shape[1]):
            station = candidates[q, j]
            if count == index.shape[1] or station < 0:
                break
            if reporting[station]:
                index[q, count], out_km[q, count] = station, km[q, j]
                count += 1
        found[q] = count
    return found


class Covariances(NamedTuple):
    """R covariances, as `Kriging.covariance` has them.

    `factor` (R, G) squared, `drift` (R, G), `reach` (R, 2) 1 / range^2, `power` (R, 2) halved, `sill` (R, 2);
    amplitudes of the `points` (R, all points) and `stations` (R, S).
    """

    factor: NDArray[np.float32]
    drift: NDArray[np.float32]
    reach: NDArray[np.float32]
    power: NDArray[np.float32]
    sill: NDArray[np.float32]
    points: NDArray[np.float32]
    stations: NDArray[np.float32]


@compiled
def covariances(some, index, km, rows, place, terrain, out):  # type: ignore[no-untyped-def]
    """Covariances (R, n, K) of the points `rows` (n,) with their neighbours; `place` (all, G), `terrain` (S, G)."""
    K, G, R = index.shape[1], place.shape[1], len(some.sill)
    apart, product, square, summed = aligned(G, K), aligned(G, K), aligned(2, K), np.empty(K, f32)
    for n in range(len(rows)):
        q = rows[n]
        for g in range(G):
            for j in range(K):
                there = terrain[index[n, j], g]
                apart[g, j], product[g, j] = (place[q, g] - there) * (place[q, g] - there), place[q, g] * there
        for r in range(R):
            for j in range(K):
                square[0, j], summed[j] = km[n, j] * km[n, j] + f32(1e-6), f32(0)
            for g in range(G):
                factor, drift = some.factor[r, g], some.drift[r, g]
                for j in range(K):
                    square[0, j] += factor * apart[g, j]
                    summed[j] += drift * product[g, j]
            for i in range(2):
                reach, power, sill = some.reach[r, i], some.power[r, i], some.sill[r, i]
                for j in range(K):
                    summed[j] += sill * exp(-exp(power * log(square[0, j] * reach)))
            for j in range(K):
                out[r, n, j] = summed[j] * some.points[r, q] * some.stations[r, index[n, j]]


@compiled
def solve(covariance, index, towards, nugget, weight, left):  # type: ignore[no-untyped-def]
    """Ordinary-kriging weights (Q, K) on stations `index` (Q, K); the multiplier less the covariance explained (Q,).

    `covariance` (S, S) of the stations without `nugget`, `towards` (Q, K) that of a point and its neighbours. `WIDE`
    systems are factorised side by side (Cholesky); `towards` and a row of ones go along as two more rows of the matrix,
    which leaves them solved forwards. Column j of the packed matrix holds rows j .. K + 1.
    """
    Q, K = index.shape
    matrix, x, some = aligned(K * (K + 5) // 2, WIDE), aligned(K, WIDE), aligned(4, WIDE)
    station = np.empty((K, WIDE), np.uint32)
    for first in range(0, Q, WIDE):
        _gather(covariance, index, towards, nugget, first, station, matrix)
        _factorise(matrix, some, K)
        multiplier = _backwards(matrix, x, some, K)
        for lane in range(min(WIDE, Q - first)):
            total = multiplier[lane]
            for j in range(K):
                weight[first + lane, j] = x[j, lane]
                total -= x[j, lane] * towards[first + lane, j]
            left[first + lane] = total


@compiled
def _gather(covariance, index, towards, nugget, first, station, matrix):  # type: ignore[no-untyped-def]
    K, last, S, flat = index.shape[1], len(index) - 1, np.uint32(len(covariance)), covariance.reshape(-1)
    for lane in range(WIDE):
        for j in range(K):
            station[j, lane] = index[min(first + lane, last), j]
    at = 0
    for j in range(K):
        for i in range(j, K):
            for lane in range(WIDE):
                matrix[at + i - j, lane] = flat[station[j, lane] * S + station[i, lane]]
        for lane in range(WIDE):
            matrix[at, lane] += nugget
            matrix[at + K - j, lane] = towards[min(first + lane, last), j]
            matrix[at + K - j + 1, lane] = f32(1)
        at += K + 2 - j


@compiled
def _factorise(matrix, some, K):  # type: ignore[no-untyped-def]
    """Cholesky column by column, four earlier columns at a time; the diagonal is left inverted."""
    at = 0
    for j in range(K):
        n, p, before = K + 2 - j, 0, 0  # `before` is where column p begins
        while p + 4 <= j:
            a = before + j - p
            b = a + K + 1 - p
            c = b + K - p
            d = c + K - 1 - p
            _subtract4(
                matrix[at : at + n], matrix[a : a + n], matrix[b : b + n], matrix[c : c + n], matrix[d : d + n], some
            )
            before, p = before + 4 * (K - p) + 2, p + 4
        while p < j:
            a = before + j - p
            _subtract(matrix[at : at + n], matrix[a : a + n], some)
            before, p = before + K + 2 - p, p + 1
        _scale(matrix[at : at + n], some)
        at += n


@compiled
def _subtract4(x, a, b, c, d, some):  # type: ignore[no-untyped-def]
    """X -= a a[0] + b b[0] + c c[0] + d d[0]; `some` holds the latter apart, so that they are known not to change."""
    for lane in range(WIDE):
        some[0, lane], some[1, lane], some[2, lane], some[3, lane] = a[0, lane], b[0, lane], c[0, lane], d[0, lane]
    for i in range(len(x)):
        for lane in range(WIDE):
            two = a[i, lane] * some[0, lane] + b[i, lane] * some[1, lane]
            x[i, lane] = x[i, lane] - two - c[i, lane] * some[2, lane] - d[i, lane] * some[3, lane]


@compiled
def _subtract(x, a, some):  # type: ignore[no-untyped-def]
    for lane in range(WIDE):
        some[0, lane] = a[0, lane]
    for i in range(len(x)):
        for lane in range(WIDE):
            x[i, lane] -= a[i, lane] * some[0, lane]


@compiled
def _scale(x, some):  # type: ignore[no-untyped-def]
    for lane in range(WIDE):
        some[0, lane] = f32(1) / np.sqrt(x[0, lane])
        x[0, lane] = some[0, lane]
    for i in range(1, len(x)):
        for lane in range(WIDE):
            x[i, lane] *= some[0, lane]


@compiled
def _backwards(matrix, x, some, K):  # type: ignore[no-untyped-def]
    """Solve L' x = y + multiplier o, y and o the last two rows: weights whose sum is 1. Returns the multiplier (W,)."""
    some[0], some[1], at = f32(0), f32(0), 0
    for j in range(K):
        at += K + 2 - j
        for lane in range(WIDE):
            some[0, lane] += matrix[at - 2, lane] * matrix[at - 1, lane]
            some[1, lane] += matrix[at - 1, lane] * matrix[at - 1, lane]
    for lane in range(WIDE):
        some[0, lane] = (f32(1) - some[0, lane]) / some[1, lane]
    for j in range(K - 1, -1, -1):
        at -= K + 2 - j
        n = K - j
        for lane in range(WIDE):
            some[1, lane] = matrix[at + n, lane] + some[0, lane] * matrix[at + n + 1, lane]
        for i in range(1, n):
            for lane in range(WIDE):
                some[1, lane] -= matrix[at + i, lane] * x[j + i, lane]
        for lane in range(WIDE):
            x[j, lane] = some[1, lane] * matrix[at, lane]
    return some[0]
