// What becomes of the sums of a step: reduced, penalised and clipped as `Objective.finish` does, then the solver's step,
// in place. Sums are float64; weights and the solver's state are of the rows' dtype, and so is the solver's arithmetic.
#pragma once
#include "plan.hpp"

namespace bp {

// The sum of term(q) for all q from first to stop: in eight sums, so that none waits for the one before it.
template <class Term> FORMULA double partial_sums(i64 first, i64 stop, Term term) {
    double sums[8] = {};
    i64 q = first;
    for (; q + 8 <= stop; q += 8)
        UNROLL for (int k = 0; k < 8; k++) sums[k] += term(q + k);
    for (; q < stop; q++) sums[(q - first) & 7] += term(q);
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// l1 sum |W| + l2 / 2 sum W ** 2 of the weights without the bias, whose slope is taken from the sums.
template <class T> static double penalise(const Plan<T>& plan) {
    double penalty = 0;
    i64 p = 0;
    for (i64 layer = 0; layer < plan.depth; layer++) {
        i64 inputs = plan.sizes[layer], O = plan.sizes[layer + 1];
        penalty += partial_sums(p, p + inputs * O, [&](i64 q) INLINED {
            double W = plan.weights[q], sign = W > 0 ? 1 : W < 0 ? -1 : W;
            plan.sums[q] = plan.sums[q] - plan.l2 * W - plan.l1 * sign;
            return plan.l1 * magnitude(W) + 0.5 * plan.l2 * W * W;
        });
        p += (inputs + plan.bias) * O;
    }
    return penalty;
}

// What the sums are multiplied by: 1, or 1 / the weight of the rows, and less where their length would be too great.
template <class T> static double reduction(const Plan<T>& plan) {
    double weight = plan.sums[plan.count];
    double share = !plan.mean ? 1 : weight > 0 ? 1 / weight : 0;  // rows that count nothing ask for nothing
    if (plan.clip > 0) {
        double squares = partial_sums(0, plan.count, [&](i64 q) INLINED {
            return (plan.sums[q] * share) * (plan.sums[q] * share);
        });
        double length = square_root(squares);
        if (length > plan.clip) share *= plan.clip / length;
    }
    return share;
}

// One step, number `now` of the run, of a solver of bpaccel/solvers.py. Rates differ from step to step: Python computes them.
template <class T> static void apply_step(const Plan<T>& plan, i64 now) {
    double penalty = plan.l1 != 0 || plan.l2 != 0 ? penalise(plan) : 0;
    for (i64 k = 0; k < TOTALS; k++) plan.totals[4 * now + k] = plan.sums[plan.count + k];
    plan.totals[4 * now + TOTALS] = penalty;
    const double scale = reduction(plan);
    const Rate rates = plan.rates[now];
    const T rate = T(rates.rate), remains = T(rates.remains), epsilon = T(rates.epsilon);
    const T first = T(plan.first), rest = T(1 - plan.first), second = T(plan.second), second_rest = T(1 - plan.second);
    T *w = plan.weights, *s = plan.state, *t = plan.second_state;
    const double* sums = plan.sums;
    auto each = [&](auto change) INLINED {
        for (i64 q = 0; q < plan.count; q++) change(q, T(sums[q] * scale));
    };
    switch (plan.solver) {
    case GRADIENT_DESCENT:
        each([&](i64 q, T u) INLINED { w[q] = fma(rate, u, w[q]); });
        break;
    case MOMENTUM:
        each([&](i64 q, T u) INLINED {
            s[q] = fma(first, s[q], rate * u);
            w[q] += s[q];
        });
        break;
    case NESTEROV:
        each([&](i64 q, T u) INLINED {
            s[q] = fma(first, s[q], rate * u);
            w[q] += fma(first, s[q], rate * u);
        });
        break;
    case ADAM:  // and AdamW
        each([&](i64 q, T u) INLINED {
            s[q] = fma(first, s[q], rest * u);
            t[q] = fma(second, t[q], second_rest * (u * u));
            w[q] = fma(rate, s[q] / (square_root(t[q]) + epsilon), w[q] * remains);
        });
        break;
    case RMSPROP:
        each([&](i64 q, T u) INLINED {
            s[q] = fma(first, s[q], rest * (u * u));
            t[q] = fma(second, t[q], u / (square_root(s[q]) + epsilon));
            w[q] = fma(rate, t[q], w[q]);
        });
        break;
    }
}
}  // namespace bp
