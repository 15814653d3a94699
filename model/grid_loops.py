"""Compiled loops of the hours: sums over the neighbours of every cell, then what `model.aqnet.Head` does with them.

No temporary array is larger than the caches. The arithmetic is the same for every cell and hour, whichever stand
beside it.

Shapes: S stations of a record, Q cells, K neighbours, A of attention, T hours, B bands, C = 2 + E channels,
n inputs, H width of the head, N levels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.compiled import aligned, between, compiled, exp, f32, log

#: Cell-hours that go through the head side by side: a multiple of a day's hours and of a vector register's length.
LANES = 192

#: Hours that are worked on whatever a day has, so that loops have a length known beforehand, and what buffers hold: the
#: hours too many of one cell are overwritten by the next cell's.
HOURS = 32
WIDTH = LANES + HOURS


class Cells(NamedTuple):
    """What a layout knows of its cells.

    Neighbours `station` (Q, K) of the record; weights `bands` (B, Q, S) of all stations, float64; `km` (Q, K) of the
    neighbours and `attention` (Q, A) of the nearest; `inflow` (Q, H), what the inputs that do not change give the first
    layer, bias included; `variance` (Q,) of a new observation over a typical error; `widen` (Q,), the factor of the
    intervals' width; `cycle` (Q, 2), sine and cosine of the longitude.
    """

    station: NDArray[np.int32]
    bands: NDArray[np.float64]
    km: NDArray[np.float32]
    attention: NDArray[np.float32]
    inflow: NDArray[np.float32]
    variance: NDArray[np.float32]
    widen: NDArray[np.float32]
    cycle: NDArray[np.float32]


class Day(NamedTuple):
    """What stations say.

    `bands` (B, S, T) of all stations; `channels` (S, C, `HOURS`); `valid` (S, T); `cycle` (2, `HOURS`) sine and cosine
    of UTC.
    """

    bands: NDArray[np.float64]
    channels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    cycle: NDArray[np.float32]


class Sums(NamedTuple):
    """Weighted sums of the bands at all cells.

    `bands` (B, Q times `width` and `HOURS` more) has `width` hours of one cell after those of another; those of a
    `Day` are the ones from `first` on.
    """

    bands: NDArray[np.float32]
    width: int
    first: int


class HeadWeights(NamedTuple):
    """`Head` as arrays: `first` (H, n) of the hourly inputs, `second` (H, H), `third` (1 + N, H), and biases.

    Both sides of each are padded with zeros to multiples of 4. `steps` (N - 1,) of a standard normal between levels.
    """

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    third: NDArray[np.float32]
    second_bias: NDArray[np.float32]
    third_bias: NDArray[np.float32]
    steps: NDArray[np.float32]
    level: np.float32


class Out(NamedTuple):
    """Where estimates go, ug m-3: `mean` (T, Q), `quantiles` (levels, T, Q), `distance` (T, Q) km; all NaN before."""

    mean: NDArray[np.float32]
    quantiles: NDArray[np.float32]
    distance: NDArray[np.float32]


@compiled
def grid_hours(first, last, summed, cells, day, head, levels, out, start):  # type: ignore[no-untyped-def]
    """Estimate cells `first` to `last` in the hours of `day`, the first of which is hour `start` of `out`.

    `summed` are the `Sums` of the day; `levels` (L,) are the positions of the wanted quantiles. NaN stays where none of
    a cell's neighbours is valid.
    """
    bands = summed.bands
    T, B, n, H = day.valid.shape[1], len(bands), head.first.shape[1], len(head.second)
    sums, x, some = aligned(day.channels.shape[1], HOURS), aligned(n, WIDTH), aligned(3, WIDTH)
    hidden, deeper, z = aligned(H, WIDTH), aligned(H, WIDTH), aligned(len(head.third), WIDTH)
    total, error, spread = some[0], some[1], some[2]
    x[:], hidden[:], some[:] = f32(0), f32(0), f32(1)
    together = LANES // T
    for q in range(first, last, together):
        count = min(together, last - q)
        for c in range(count):
            _sum(cells, day.channels, q + c, sums)
            at, cycle = (q + c) * summed.width + summed.first, cells.cycle[q + c]
            _inputs(bands, at, sums, cycle, day.cycle, c * T, x, total, error, head.level)
            _fixed(cells.inflow[q + c], cells.variance[q + c], c * T, hidden, spread)
        _logs(x, B, total, error)
        _dense(head.first, x, hidden)
        _silu(hidden)
        _start(head.second_bias, deeper)
        _dense(head.second, hidden, deeper)
        _silu(deeper)
        _start(head.third_bias, z)
        _dense(head.third, deeper, z)
        _distribution(z, head.steps, total, error, spread)
        for c in range(count):
            _write(cells, day.valid, levels, len(head.steps) + 1, z, q + c, c * T, out, start)


@compiled
def _sum(cells, channels, q, sums):  # type: ignore[no-untyped-def]
    """Weighted sums (C, HOURS) of the channels of a cell's nearest stations."""
    sums[:] = f32(0)
    for c in range(len(sums)):
        _add(cells.attention[q], cells.station[q], channels, c, sums[c])


@compiled
def _add(weight, index, channels, c, total):  # type: ignore[no-untyped-def]
    last = len(weight) - len(weight) % 4
    for k in range(0, last, 4):
        u, v, w, x = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        one, two = channels[np.uint32(index[k]), c], channels[np.uint32(index[k + 1]), c]
        three, four = channels[np.uint32(index[k + 2]), c], channels[np.uint32(index[k + 3]), c]
        for t in range(HOURS):
            total[t] = total[t] + u * one[t] + v * two[t] + w * three[t] + x * four[t]
    for k in range(last, len(weight)):
        one, u = channels[index[k], c], weight[k]
        for t in range(HOURS):
            total[t] += u * one[t]


@compiled
def _inputs(bands, at, sums, place, cycle, lane, x, total, error, level):  # type: ignore[no-untyped-def]
    """The inputs that `Head.inputs` makes of the sums, logarithms excepted, into lanes from `lane` on.

    `bands` has the sums of the cell's hours from column `at` on. Rows are cut out first: loops over them are then known
    to stay inside, and vectorised.
    """
    B, E, last = len(bands), len(sums) - 2, lane + HOURS
    summed, off = total[lane:last], error[lane:last]
    summed[:] = f32(0)
    for b in range(B):
        band = bands[b, at : at + HOURS]
        for t in range(HOURS):
            summed[t] += band[t]
    for t in range(HOURS):
        off[t] = sums[0, t] / (sums[1, t] + f32(1e-3)) + f32(1e-3)
    level_off, heard = x[0, lane:last], x[B + 1, lane:last]
    sine, cosine = x[B + 3 + E, lane:last], x[B + 4 + E, lane:last]
    for t in range(HOURS):
        level_off[t] = between(summed[t] - level, f32(-4), f32(4))
        heard[t] = sums[1, t]
        sine[t] = cycle[0, t] * place[1] + cycle[1, t] * place[0]
        cosine[t] = cycle[1, t] * place[1] - cycle[0, t] * place[0]
    for b in range(B - 1):
        band, out = bands[b, at : at + HOURS], x[1 + b, lane:last]
        for t in range(HOURS):
            out[t] = between(band[t], f32(-4), f32(4))
    for e in range(E):
        out = x[B + 3 + e, lane:last]
        for t in range(HOURS):
            out[t] = sums[2 + e, t]


@compiled
def _fixed(inflow, variance, lane, hidden, spread):  # type: ignore[no-untyped-def]
    """What does not change with the hour, into lanes from `lane` on."""
    for j in range(len(inflow)):
        hidden[j, lane : lane + HOURS] = inflow[j]
    spread[lane : lane + HOURS] = variance


@compiled
def _logs(x, B, total, error):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        x[B, lane] = log(error[lane])
        x[B + 2, lane] = log(max(total[lane], f32(0.3)))


@compiled
def _start(bias, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        for lane in range(LANES):
            out[j, lane] = bias[j]


@compiled
def _dense(weight, x, out):  # type: ignore[no-untyped-def]
    """Out += weight x, 4 outputs and 4 inputs at a time (both are multiples of 4), so that registers are used again."""
    for j in range(0, weight.shape[0], 4):
        for i in range(0, weight.shape[1], 4):
            p0, p1, p2, p3 = weight[j, i], weight[j, i + 1], weight[j, i + 2], weight[j, i + 3]
            q0, q1, q2, q3 = weight[j + 1, i], weight[j + 1, i + 1], weight[j + 1, i + 2], weight[j + 1, i + 3]
            r0, r1, r2, r3 = weight[j + 2, i], weight[j + 2, i + 1], weight[j + 2, i + 2], weight[j + 2, i + 3]
            s0, s1, s2, s3 = weight[j + 3, i], weight[j + 3, i + 1], weight[j + 3, i + 2], weight[j + 3, i + 3]
            for lane in range(LANES):
                a, b, c, d = x[i, lane], x[i + 1, lane], x[i + 2, lane], x[i + 3, lane]
                out[j, lane] = out[j, lane] + p0 * a + p1 * b + p2 * c + p3 * d
                out[j + 1, lane] = out[j + 1, lane] + q0 * a + q1 * b + q2 * c + q3 * d
                out[j + 2, lane] = out[j + 2, lane] + r0 * a + r1 * b + r2 * c + r3 * d
                out[j + 3, lane] = out[j + 3, lane] + s0 * a + s1 * b + s2 * c + s3 * d


@compiled
def _silu(x):  # type: ignore[no-untyped-def]
    for j in range(len(x)):
        for lane in range(LANES):
            x[j, lane] = x[j, lane] / (f32(1) + exp(-x[j, lane]))


@compiled
def _distribution(z, steps, total, error, spread):  # type: ignore[no-untyped-def]
    """Turn the outputs (shift, steps, lift) into quantiles (rows 0 .. N - 1) and the mean (row N), all as z.

    `spread` has the variances before, deviations after.
    """
    N = len(steps) + 1
    middle = N // 2
    for lane in range(LANES):
        spread[lane] = np.sqrt(between(spread[lane] * error[lane], f32(1e-4), f32(4)))
        median = total[lane] + f32(0.3) * z[0, lane]
        lift = spread[lane] * spread[lane] / max(median, f32(1)) * exp(between(z[N, lane], f32(-4), f32(4)))
        total[lane], z[N, lane] = median, median + lift
    for step in range(1, N):  # row `step` has the step between levels `step - 1` and `step`
        for lane in range(LANES):
            z[step, lane] = steps[step - 1] * spread[lane] * exp(between(z[step, lane], f32(-4), f32(4)))
    for lane in range(LANES):
        above = total[lane]
        for step in range(middle + 1, N):
            above += z[step, lane]
            z[step, lane] = above
        below = total[lane]
        for step in range(middle, 0, -1):
            distance, z[step, lane] = z[step, lane], below
            below -= distance
        z[0, lane] = below


@compiled
def _write(cells, valid, levels, mean, z, q, lane, out, start):  # type: ignore[no-untyped-def]
    for t in range(valid.shape[1]):
        for k in range(cells.station.shape[1]):
            if valid[cells.station[q, k], t]:
                out.distance[start + t, q] = cells.km[q, k]
                out.mean[start + t, q] = _cube(z[mean, lane + t])
                median = z[mean // 2, lane + t]
                for n in range(len(levels)):
                    off = cells.widen[q] * (z[levels[n], lane + t] - median)
                    out.quantiles[n, start + t, q] = _cube(median + off)
                break


@compiled
def _cube(x):  # type: ignore[no-untyped-def]
    x = max(x, f32(0))
    return x * x * x
