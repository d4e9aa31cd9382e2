// SPDX-License-Identifier: MIT
// A scalar that carries a bound of its own rounding error, so that the oracle itself says how far a float32 kernel
// may be off (running error analysis: Wilkinson 1963; Higham 2002, section 3.3).
#pragma once

#include <cmath>

namespace miaobi::test {

constexpr double kUnit = 0x1p-24;         // half the distance of 1 to the next float
constexpr double kTiniest = 0x1p-149;     // the distance of the smallest floats
constexpr double kActivationUnit = 1e-6;  // the engine's promise for tanh and the gate of GELU, absolute

// `value` is computed in double; a float32 computation of the same formula is within `error` of it. += belongs to a
// sum: it charges all that was summed so far, in absolute values, so the bound holds for every order of the terms
// within a small factor. Every other operator is one rounding.
struct Tracked {
  double value = 0, error = 0;
  double summed = 0;  // of absolute values, over the += so far

  Tracked() = default;
  explicit Tracked(double v, double e = 0) : value(v), error(e), summed(std::fabs(v)) {}

  Tracked& operator+=(const Tracked& b) {
    value += b.value;
    summed += std::fabs(b.value);
    error += b.error + kUnit * summed;
    return *this;
  }
};

// The result of one operation: what came in, and a rounding.
inline Tracked rounded(double value, double error) { return Tracked(value, error + kUnit * std::fabs(value)); }

inline Tracked operator+(const Tracked& a, const Tracked& b) { return rounded(a.value + b.value, a.error + b.error); }
inline Tracked operator-(const Tracked& a, const Tracked& b) { return rounded(a.value - b.value, a.error + b.error); }
inline Tracked operator*(const Tracked& a, const Tracked& b) {
  return rounded(a.value * b.value, std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error);
}
inline Tracked operator/(const Tracked& a, const Tracked& b) {
  const double q = a.value / b.value, room = std::fabs(b.value) - b.error;
  return rounded(q, (a.error + std::fabs(q) * b.error) / room);
}
inline bool operator>(const Tracked& a, const Tracked& b) { return a.value > b.value; }

inline Tracked sqrt(const Tracked& a) {
  const double r = std::sqrt(a.value);
  return rounded(r, a.error == 0 ? 0 : a.error / (r + std::sqrt(std::fmax(0.0, a.value - a.error))));
}
// The engine's exp is within 2 ulp, that is 4 units.
inline Tracked exp(const Tracked& a) {
  const double r = std::exp(a.value);
  return Tracked(r, r * std::expm1(a.error) + 4 * kUnit * r + 2 * kTiniest);
}
inline Tracked log(const Tracked& a) {
  const double r = std::log(a.value);
  return rounded(r, a.error / (a.value - a.error));
}
inline Tracked tanh(const Tracked& a) { return rounded(std::tanh(a.value), a.error + kActivationUnit); }

}  // namespace miaobi::test
