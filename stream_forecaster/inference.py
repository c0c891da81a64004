"""The network's forward pass on a processor, compiled: the answers of `network`, which defines it.

Theory of operation. Many rows go through matrices that are small: what counts is that nothing is
read or written twice. A block of rows stands feature by feature, so that every loop runs over rows
that are neighbours in memory; activations are rational functions, of which eight are computed at a
time. The block stays in the cache from the window to the state, and from the clues to the answer.

Every row's numbers are added up in the same order whatever rows go with it, so an answer depends on
nothing but its key, bit for bit. It is within 1e-4 expected errors of that of `network`, which
training goes through, as it does on a graphics processor.

Axes: as in `network`; G the gate's horizon buckets, W the decoder's width, L rows of a block.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.architecture import (
    BOUND,
    CHANNELS,
    LARGEST_LOGIT,
    LEVELS,
    NORMAL,
    ONE_WIDE,
    PATCH,
    STATE,
)
from stream_forecaster.compiled import compiled, inlined

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_KEYS = 256
"""Keys that are encoded at once."""
_KEYS_MIXED = 64
"""Keys whose states are mixed at once, before their steps are decoded."""
_ROWS = 256
"""Steps of keys that are decoded at once; at least one key's."""


def encode(encoder: Mapping[str, Float32], window: Float32, statistics: Float32) -> Float32:
    """States (B, D) of windows (B, T, CHANNELS) and statistics (B, STATISTICS).

    Args:
        encoder: one resolution's parameters by name.
        window: see `inputs.windows`.
        statistics: see `inputs.statistics`.
    """
    state = np.empty((len(window), STATE), np.float32)
    inside, units = len(encoder["embed.bias"]), len(encoder["lstm.bias_hh_l0"]) // 4
    width = PATCH * CHANNELS
    patch, given, gates, cell, told, out = (
        np.empty((rows, _KEYS), np.float32)
        for rows in (width, inside + units, 4, units, units + statistics.shape[1], STATE)
    )
    _encode(
        window.reshape(len(window), window.shape[1] // PATCH, width),
        statistics,
        *_linear(encoder, "embed"),
        np.concatenate([encoder[f"lstm.weight_{of}_l0"] for of in ("ih", "hh")], axis=1),
        encoder["lstm.bias_ih_l0"] + encoder["lstm.bias_hh_l0"],
        *_linear(encoder, "state"),
        patch,
        given,
        gates,
        cell,
        told,
        out,
        state,
    )
    return state


def decode(  # noqa: PLR0913, PLR0917  (what a decoder is told, each of its own kind)
    decoder: Mapping[str, Float32],
    relation: Int64,
    states: Float32,
    candidates: Float32,
    losses: Float32,
    clues: Float32,
    bucket: Int64,
) -> tuple[Float32, Float32, Float32]:
    """Absolute and residual path (B, H) and quantiles (B, H, Q), in expected errors.

    Args:
        decoder: one resolution's parameters by name.
        relation: (R,) of the states' resolutions to its own: 0 finer, 1 the same, 2 coarser.
        states: (B, R, D), NaN where a key has none.
        candidates: (B, H, M) as in `network.Steps`.
        losses: (B, H, M) likewise.
        clues: (B, H, CLUES) likewise.
        bucket: (H,) the gate's horizon bucket.
    """
    shape = candidates.shape[:2]
    absolute, residual = np.empty(shape, np.float32), np.empty(shape, np.float32)
    quantiles = np.empty((*shape, len(LEVELS)), np.float32)
    of_states = [_linear(decoder, name) for name in ("gate", "value")]
    weight, bias = _linear(decoder, "out")
    spare = np.zeros((-len(bias) % _AT_ONCE, weight.shape[1]), np.float32)
    step, mix = _linear(decoder, "step"), _linear(decoder, "mix")
    horizon, m = candidates.shape[1:]
    few = _keys_decoded(horizon)
    many = few * max(1, _KEYS_MIXED // few)
    given = np.empty((states.shape[2], many), np.float32)
    said = np.empty((len(relation), sum(len(bias) for _, bias in of_states), many), np.float32)
    context = np.empty((decoder["relation"].shape[1], len(step[1]), many), np.float32)
    paths, told, hidden, deeper, out, sums = (
        np.empty((rows, few * horizon), np.float32)
        for rows in (m, step[0].shape[1], len(step[1]), len(mix[1]), len(bias) + len(spare), 2)
    )
    _decode(
        states,
        candidates,
        losses,
        clues,
        bucket,
        decoder["relation"][relation],
        np.concatenate([weight for weight, _ in of_states]),
        np.concatenate([bias for _, bias in of_states]),
        *step,
        *mix,
        np.concatenate([weight, spare]),
        np.concatenate([bias, spare[:, 0]]),
        _GAPS,
        np.float32(BOUND),
        np.float32(LARGEST_LOGIT),
        np.float32(ONE_WIDE),
        given,
        said,
        context,
        paths,
        told,
        hidden,
        deeper,
        out,
        sums,
        absolute,
        residual,
        quantiles,
    )
    return absolute, residual, quantiles


_GAPS = np.diff(NORMAL).astype(np.float32)
_AT_ONCE = 4
"""Rows of a matrix that are multiplied at once; there are so many, or twice or more times."""


def _linear(part: Mapping[str, Float32], name: str) -> tuple[Float32, Float32]:
    return part[f"{name}.weight"], part[f"{name}.bias"]


@inlined
def _keys_decoded(horizon: int) -> int:
    """Keys whose steps are decoded at once."""
    return max(1, _ROWS // max(horizon, 1))


# -- of one number ---------------------------------------------------------------------------------
# All of them are NaN of NaN: a network that diverged has no opinion.

_ONE, _TWO, _HALF = np.float32(1), np.float32(2), np.float32(0.5)
_ROOT_HALF = np.float32(0.5**0.5)
# Odd rational functions x P(x^2) / Q(x^2) with the least largest error that a fit came to, which is
# 5e-7 of the hyperbolic tangent and 3e-6 of the error function; constant from `_TANH_END` on.
_TANH_END, _ERF_END = np.float32(7.6), np.float32(3.5)
_T0, _T1, _T2, _T3 = (
    np.float32(c) for c in (9.99999583e-01, 1.29494533e-01, 2.97734933e-03, 1.17309219e-05)
)
_U1, _U2, _U3, _U4 = (
    np.float32(c) for c in (4.62826312e-01, 2.39211917e-02, 2.42494221e-04, 2.55959833e-07)
)
_E0, _E1, _E2, _E3 = (
    np.float32(c) for c in (1.12839508e00, 1.63861319e-01, 4.65535559e-02, 1.15058268e-03)
)
_F1, _F2, _F3, _F4 = (
    np.float32(c) for c in (4.78685766e-01, 1.00455694e-01, 1.08951293e-02, 3.82691615e-05)
)
_SQUARINGS = 6
_PART = np.float32(0.5**_SQUARINGS)
_NO_STATE = np.float32(-1e9)
_LEAST_EXPONENT = np.float32(-40)
# Taylor's series of the exponential function, and of log((1 + x) / (1 - x)) / 2 over x.
_X2, _X3, _X4, _X5, _X6 = (np.float32(1 / n) for n in (2, 6, 24, 120, 720))
_L3, _L5, _L7, _L9, _L11 = (np.float32(1 / n) for n in (3, 5, 7, 9, 11))


@inlined
def _tanh(x: np.float32) -> np.float32:
    x = min(x, _TANH_END)
    x = max(x, -_TANH_END)
    s = x * x
    above = _T0 + s * (_T1 + s * (_T2 + s * _T3))
    return x * above / (_ONE + s * (_U1 + s * (_U2 + s * (_U3 + s * _U4))))


@inlined
def _sigmoid(x: np.float32) -> np.float32:
    return _HALF + _HALF * _tanh(_HALF * x)


@inlined
def _gelu(x: np.float32) -> np.float32:
    y = x * _ROOT_HALF
    y = min(y, _ERF_END)
    y = max(y, -_ERF_END)
    s = y * y
    above = _E0 + s * (_E1 + s * (_E2 + s * _E3))
    erf = y * above / (_ONE + s * (_F1 + s * (_F2 + s * (_F3 + s * _F4))))
    return _HALF * x * (_ONE + erf)


@inlined
def _exp(x: np.float32) -> np.float32:
    """Of at most 30, and of -40 for any below that; within 1e-5 of it."""
    x = (max(x, _LEAST_EXPONENT)) * _PART
    y = _ONE + x * (_ONE + x * (_X2 + x * (_X3 + x * (_X4 + x * (_X5 + x * _X6)))))
    for _ in range(_SQUARINGS):
        y *= y
    return y


@inlined
def _softplus(x: np.float32) -> np.float32:
    t = _exp(-x if x > 0 else x)
    r = t / (_TWO + t)  # log(1 + t) is log((1 + r) / (1 - r)); r is at most a third
    s = r * r
    log = _TWO * r * (_ONE + s * (_L3 + s * (_L5 + s * (_L7 + s * (_L9 + s * _L11)))))
    return (x if x > 0 else np.float32(0)) + log


# -- of matrices -----------------------------------------------------------------------------------


@inlined
def _multiply_4(  # noqa: PLR0913, PLR0917  (a loop has no objects to keep arrays in)
    weight: Float32, row: int, stride: int, given: Float32, rows: int, out: Float32, at: int
) -> None:
    """Add four rows of `weight`, `stride` apart, times `given` (K, rows), to those of out at `at`.

    Eight weights, the registers that a processor has for them, and two numbers at a time.
    """
    second, third, fourth = row + stride, row + 2 * stride, row + 3 * stride
    for k in range(0, weight.shape[1], 2):
        a, b = weight[row, k], weight[row, k + 1]
        c, d = weight[second, k], weight[second, k + 1]
        e, f = weight[third, k], weight[third, k + 1]
        g, h = weight[fourth, k], weight[fourth, k + 1]
        for i in range(rows):
            x, y = given[k, i], given[k + 1, i]
            out[at, i] += a * x + b * y
            out[at + 1, i] += c * x + d * y
            out[at + 2, i] += e * x + f * y
            out[at + 3, i] += g * x + h * y


@inlined
def _multiply(weight: Float32, given: Float32, rows: int, out: Float32) -> None:
    """Add weight (J, K) times `given` (K, rows) to `out` (J, rows); K is even."""
    for j in range(0, len(weight), _AT_ONCE):
        _multiply_4(weight, j, 1, given, rows, out, j)


@inlined
def _turn(told: Float32, out: Float32, at: int) -> None:
    """What is told of rows (rows, F) into `out` feature by feature, from `at` on."""
    for i in range(len(told)):
        for f in range(told.shape[1]):
            out[at + f, i] = told[i, f]


@inlined
def _begin(bias: Float32, rows: int, out: Float32) -> None:
    for j in range(len(bias)):
        for i in range(rows):
            out[j, i] = bias[j]


@inlined
def _activate(rows: int, out: Float32) -> None:
    for j in range(len(out)):
        for i in range(rows):
            out[j, i] = _gelu(out[j, i])


# -- the encoder -----------------------------------------------------------------------------------


@inlined
def _step_on(  # noqa: PLR0913, PLR0917
    weight: Float32,
    bias: Float32,
    given: Float32,
    rows: int,
    gates: Float32,
    cell: Float32,
    hidden: Float32,
) -> None:
    """One step of the LSTM, a unit at a time: its four gates, then its cell."""
    units = len(cell)
    for u in range(units):
        for gate in range(4):
            for i in range(rows):
                gates[gate, i] = bias[u + gate * units]
        _multiply_4(weight, u, units, given, rows, gates, 0)
        for i in range(rows):
            kept, entered = _sigmoid(gates[1, i]) * cell[u, i], _sigmoid(gates[0, i])
            cell[u, i] = kept + entered * _tanh(gates[2, i])
            hidden[u, i] = _sigmoid(gates[3, i]) * _tanh(cell[u, i])


@compiled("f4:3 f4:2 f4:2 f4:1 f4:2 f4:1 f4:2 f4:1 > f4:2 f4:2 f4:2 f4:2 f4:2 f4:2 f4:2")
def _encode(  # noqa: PLR0913, PLR0917
    patches: Float32,
    statistics: Float32,
    embed: Float32,
    embed_bias: Float32,
    weight: Float32,
    bias: Float32,
    last: Float32,
    last_bias: Float32,
    patch: Float32,
    given: Float32,
    gates: Float32,
    cell: Float32,
    told: Float32,
    out: Float32,
    state: Float32,
) -> None:
    """States (B, D) of patches (B, T / PATCH, PATCH * C).

    There is room for the patches, the embedded ones above hidden units, the four gates, the cells,
    what is told the last layer, and what that says, of so many keys at a time.
    """
    units, inside = len(weight) // 4, len(embed)
    for first in range(0, len(patches), _KEYS):
        rows = min(_KEYS, len(patches) - first)
        given[inside:, :] = np.float32(0)
        cell[:, :] = np.float32(0)
        for t in range(patches.shape[1]):
            _turn(patches[first : first + rows, t], patch, 0)
            embedded = given[:inside]
            _begin(embed_bias, rows, embedded)
            _multiply(embed, patch, rows, embedded)
            _activate(rows, embedded)
            _step_on(weight, bias, given, rows, gates, cell, told)
            for u in range(units):
                for i in range(rows):
                    given[inside + u, i] = told[u, i]
        _turn(statistics[first : first + rows], told, units)
        _begin(last_bias, rows, out)
        _multiply(last, told, rows, out)
        for i in range(rows):
            for j in range(len(last)):
                state[first + i, j] = _tanh(out[j, i])


# -- the decoder -----------------------------------------------------------------------------------


@inlined
def _ask_states(
    states: Float32,
    relation: Float32,
    weight: Float32,
    bias: Float32,
    given: Float32,
    said: Float32,
) -> None:
    """What gate and value say of some keys' states (keys, R, D): (R, G + W, keys)."""
    for r in range(states.shape[1]):
        for i in range(len(states)):
            is_there = not np.isnan(states[i, r, 0])
            for d in range(states.shape[2]):
                given[d, i] = states[i, r, d] if is_there else np.float32(0)
        _begin(bias, len(states), said[r])
        _multiply(weight, given, len(states), said[r])
        for g in range(relation.shape[1]):
            for i in range(len(states)):
                is_there = not np.isnan(states[i, r, 0])
                said[r, g, i] = said[r, g, i] + relation[r, g] if is_there else _NO_STATE


@inlined
def _mix_states(said: Float32, keys: int, context: Float32) -> None:
    """Softmax over resolutions of what the gate says, and of the values the mean (G, W, keys)."""
    buckets, width = context.shape[:2]
    resolutions = range(len(said))
    for g in range(buckets):
        for i in range(keys):
            most, total = said[0, g, i], np.float32(0)
            for r in resolutions:
                most = max(most, said[r, g, i])
            for r in resolutions:
                said[r, g, i] = _exp(said[r, g, i] - most)
                total += said[r, g, i]
            for r in resolutions:
                said[r, g, i] /= total
        for w in range(width):
            for i in range(keys):
                context[g, w, i] = np.float32(0)
                for r in resolutions:
                    context[g, w, i] += said[r, g, i] * said[r, buckets + w, i]


@inlined
def _begin_with(
    context: Float32, first: int, keys: int, bucket: Int64, bias: Float32, out: Float32
) -> None:
    """Of every step (W, keys * H) the bias, and of keys the context (G, W, ...) at its bucket."""
    horizon = len(bucket)
    for w in range(len(bias)):
        for i in range(keys):
            for h in range(horizon):
                out[w, i * horizon + h] = bias[w] + context[bucket[h], w, first + i]


@inlined
def _turn_steps(told: Float32, out: Float32, at: int) -> None:
    """What is told of keys' steps (keys, H, F) into rows of `out` (F, keys * H), from `at` on."""
    keys, horizon, features = told.shape
    for i in range(keys):
        for h in range(horizon):
            for f in range(features):
                out[at + f, i * horizon + h] = told[i, h, f]


@inlined
def _take_opinions(paths: Float32, rows: int, given: Float32) -> None:
    """Paths (M, rows) as the first layer takes them: halved, none as zero."""
    for m in range(len(paths)):
        for i in range(rows):
            path = paths[m, i]
            given[m, i] = _HALF * path if path == path else np.float32(0)  # noqa: PLR0124  (NaN)


@inlined
def _mix_paths(
    said: Float32, paths: Float32, rows: int, largest: np.float32, total: Float32, middle: Float32
) -> None:
    """The middle (rows,): softmax over paths (M, rows) and the pool, whose own path is zero."""
    m = len(paths)
    for i in range(rows):
        total[i], middle[i] = _ONE, np.float32(0)
    for j in range(m):
        for i in range(rows):
            logit, path = said[j, i] - said[m, i], paths[j, i]
            weight = _exp(min(logit, largest))
            is_there = path == path  # noqa: PLR0124  (NaN)
            total[i] += weight if is_there else np.float32(0)
            middle[i] += weight * path if is_there else np.float32(0)
    for i in range(rows):
        middle[i] /= total[i]


@inlined
def _bound(
    out: Float32,
    at: int,
    rows: int,
    bound: np.float32,
    widths: Float32,
    one_wide: np.float32,
) -> None:
    """Three offsets, rows of `out` from `at` on, into their bounds; gaps after them, positive."""
    for part in range(at, at + 3):
        for i in range(rows):
            out[part, i] = bound * _tanh(out[part, i] / bound)
    for gap in range(len(widths)):
        for i in range(rows):
            out[at + 3 + gap, i] = widths[gap] * _softplus(out[at + 3 + gap, i] + one_wide)


@inlined
def _say(
    out: Float32,
    at: int,
    middle: Float32,
    absolute: Float32,
    residual: Float32,
    quantiles: Float32,
) -> None:
    """The answer to some keys' steps (keys, H), which are the rows of `out`."""
    keys, horizon, levels = quantiles.shape
    half, gaps = levels // 2, at + 3
    for i in range(keys):
        for h in range(horizon):
            row = i * horizon + h
            residual[i, h] = out[at, row]
            absolute[i, h] = middle[row] + out[at + 1, row]
            above = below = middle[row] + out[at + 2, row]
            quantiles[i, h, half] = above
            for gap in range(half):
                above += out[gaps + half + gap, row]
                below -= out[gaps + half - 1 - gap, row]
                quantiles[i, h, half + 1 + gap] = above
                quantiles[i, h, half - 1 - gap] = below


@compiled(
    "f4:3 f4:3 f4:3 f4:3 i8:1 f4:2 f4:2 f4:1 f4:2 f4:1 f4:2 f4:1 f4:2 f4:1 f4:1 f4 f4 f4"
    "> f4:2 f4:3 f4:3 f4:2 f4:2 f4:2 f4:2 f4:2 f4:2 f4:2 f4:2 f4:3"
)
def _decode(  # noqa: PLR0913, PLR0917
    states: Float32,
    candidates: Float32,
    losses: Float32,
    clues: Float32,
    bucket: Int64,
    relation: Float32,
    of_states: Float32,
    of_states_bias: Float32,
    step: Float32,
    step_bias: Float32,
    mix: Float32,
    mix_bias: Float32,
    last: Float32,
    last_bias: Float32,
    widths: Float32,
    bound: np.float32,
    largest: np.float32,
    one_wide: np.float32,
    given: Float32,
    said: Float32,
    context: Float32,
    paths: Float32,
    told: Float32,
    hidden: Float32,
    deeper: Float32,
    out: Float32,
    sums: Float32,
    absolute: Float32,
    residual: Float32,
    quantiles: Float32,
) -> None:
    """The answer to keys, some at a time: their states are mixed, then their steps decoded.

    There is room for the states of many keys, what is said of them and their context; and, for the
    steps of few, for paths, what the three layers are told and say, and two sums.
    """
    horizon, m = candidates.shape[1:]
    many, few = given.shape[1], _keys_decoded(horizon)
    total, middle = sums[0], sums[1]
    for first in range(0, len(states), few):
        end = min(first + few, len(states))
        rows = (end - first) * horizon
        if first % many == 0:
            next_ones = states[first : first + many]
            _ask_states(next_ones, relation, of_states, of_states_bias, given, said)
            _mix_states(said, len(next_ones), context)
        _turn_steps(candidates[first:end], paths, 0)
        _turn_steps(losses[first:end], told, m)
        _turn_steps(clues[first:end], told, 2 * m)
        _take_opinions(paths, rows, told)
        _begin_with(context, first % many, end - first, bucket, step_bias, hidden)
        _multiply(step, told, rows, hidden)
        _activate(rows, hidden)
        _begin(mix_bias, rows, deeper)
        _multiply(mix, hidden, rows, deeper)
        _activate(rows, deeper)
        for w in range(len(hidden)):
            for i in range(rows):
                deeper[w, i] += hidden[w, i]
        _begin(last_bias, rows, out)
        _multiply(last, deeper, rows, out)
        _mix_paths(out, paths, rows, largest, total, middle)
        _bound(out, m + 1, rows, bound, widths, one_wide)
        _say(out, m + 1, middle, absolute[first:end], residual[first:end], quantiles[first:end])
