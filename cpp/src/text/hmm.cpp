// SPDX-License-Identifier: MIT
// The tables of the hidden Markov model, read from Python literals, and Viterbi's algorithm as jieba computes it.
#include "text/hmm.h"

#include <charconv>
#include <cstdlib>
#include <functional>
#include <utility>

#include "miaobi/check.h"
#include "text/utf8.h"

namespace miaobi {
namespace {

// What jieba takes for a probability that is not in its tables.
constexpr double kMinFloat = -3.14e100;

// Reads `P={'B': {'\u4e00': -3.65, ...}, ...}`: a dict of numbers, or of such dicts, whose keys are single characters.
class PythonLiteral {
 public:
  PythonLiteral(std::string path, std::string_view text) : path_(std::move(path)), text_(text) {}

  void read(const std::function<void(char32_t outer, char32_t inner, double value)>& put) {
    const size_t begin = text_.find("P={");
    at_ = begin == std::string_view::npos ? 0 : begin + 2;
    object([&](char32_t outer) {
      if (peek() == '{') {
        object([&](char32_t inner) { put(outer, inner, number()); });
      } else {
        put(outer, 0, number());
      }
    });
    peek();
    if (at_ < text_.size()) fail("the end of the file");
  }

 private:
  template <class Value>
  void object(Value&& value) {
    expect('{');
    do {
      const char32_t name = key();
      expect(':');
      value(name);
    } while (peek() == ',' && ++at_);
    expect('}');
  }

  char32_t key() {
    expect('\'');
    char32_t c = 0;
    if (text_.substr(at_).starts_with("\\u")) {
      const char* const digits = text_.data() + at_ + 2;
      uint32_t code = 0;
      const char* const end = digits + 4 <= text_.data() + text_.size() ? digits + 4 : digits;
      if (std::from_chars(digits, end, code, 16).ptr != digits + 4) fail("four hexadecimal digits");
      c = code;
      at_ += 6;
    } else {
      const int32_t code = at_ < text_.size() ? read_utf8(text_, at_) : -1;
      if (code < 0 || code == '\\' || code == '\'') fail("a character");
      c = static_cast<char32_t>(code);
    }
    if (at_ >= text_.size() || text_[at_] != '\'') fail("the end of a one-character key");
    ++at_;
    return c;
  }

  double number() {
    peek();
    size_t end = at_;
    while (end < text_.size() && (is_ascii_alnum(static_cast<uint8_t>(text_[end])) || text_[end] == '.' ||
                                  text_[end] == '-' || text_[end] == '+')) {
      ++end;
    }
    const char* const first = text_.data() + at_;
    const char* const last = text_.data() + end;
    double value = 0;
#if defined(__cpp_lib_to_chars)
    const char* const stop = std::from_chars(first, last, value).ptr;
#else  // C++ libraries that lack it for double; both round to the nearest
    const std::string copy(first, last);
    char* copy_stop = nullptr;
    value = std::strtod(copy.c_str(), &copy_stop);
    const char* const stop = first + (copy_stop - copy.c_str());
#endif
    if (first == last || stop != last) fail("a number");
    at_ = end;
    return value;
  }

  char peek() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r')) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  void expect(char c) {
    if (peek() != c || at_ >= text_.size()) fail(std::string("'") + c + "'");
    ++at_;
  }

  [[noreturn]] void fail(const std::string& expected) const {
    throw FormatError(path_, static_cast<int64_t>(at_), "expected " + expected + "; reinstall jieba");
  }

  std::string path_;
  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

int HmmModel::state_of(char32_t letter) {
  switch (letter) {
    case 'B': return kB;
    case 'E': return kE;
    case 'M': return kM;
    case 'S': return kS;
    default: return -1;
  }
}

HmmModel::HmmModel(const std::string& folder, std::string_view start, std::string_view trans, std::string_view emit) {
  start_.fill(kMinFloat);
  Row none;
  none.fill(kMinFloat);
  trans_.fill(none);
  emit_.assign(0x9FD5 - 0x4E00 + 1, none);
  const auto state = [](const std::string& path, char32_t letter) {
    const int s = state_of(letter);
    if (s < 0) throw FormatError(path, -1, "expected the states B, E, M and S; reinstall jieba");
    return static_cast<size_t>(s);
  };
  const std::string start_path = folder + "/prob_start.py", trans_path = folder + "/prob_trans.py",
                    emit_path = folder + "/prob_emit.py";
  PythonLiteral(start_path, start).read([&](char32_t y, char32_t, double p) { start_[state(start_path, y)] = p; });
  PythonLiteral(trans_path, trans).read([&](char32_t y0, char32_t y, double p) {
    trans_[state(trans_path, y0)][state(trans_path, y)] = p;
  });
  PythonLiteral(emit_path, emit).read([&](char32_t y, char32_t c, double p) {
    if (is_han(c)) emit_[c - 0x4E00][state(emit_path, y)] = p;  // no other character is asked for
  });
}

void HmmModel::cut(const char16_t* s, int64_t n, int64_t offset, std::vector<uint8_t>& states,
                   std::vector<int64_t>& ends) const {
  // For each state: the two that may come before it, the alphabetically later one second, which wins a tie.
  constexpr int kBefore[kStates][2] = {{kE, kS}, {kB, kM}, {kB, kM}, {kE, kS}};
  states.resize(static_cast<size_t>(n));  // bit y: the second of kBefore[y] came before state y
  Row v;
  for (int y = 0; y < kStates; ++y) v[y] = start_[y] + emit_[s[0] - 0x4E00][y];
  for (int64_t t = 1; t < n; ++t) {
    const Row& emit = emit_[s[t] - 0x4E00];
    Row next;
    uint8_t second = 0;
    // v[before] + trans + emit, in jieba's order of additions.
    const auto step = [&](State y, State earlier, State later) {
      const double a = v[earlier] + trans_[earlier][y] + emit[y];
      const double b = v[later] + trans_[later][y] + emit[y];
      next[y] = b >= a ? b : a;
      second |= static_cast<uint8_t>((b >= a) << y);
    };
    step(kB, kE, kS);
    step(kE, kB, kM);
    step(kM, kB, kM);
    step(kS, kE, kS);
    v = next;
    states[t] = second;
  }
  int state = v[kS] >= v[kE] ? kS : kE;
  for (int64_t t = n - 1; t >= 0; --t) {
    const int before = kBefore[state][states[t] >> state & 1];
    states[t] = static_cast<uint8_t>(state);
    state = before;
  }
  // A word ends with its E or S; jieba gives a rest as a word, too.
  for (int64_t t = 0; t < n; ++t) {
    if (states[t] == kE || states[t] == kS || t + 1 == n) ends.push_back(offset + t + 1);
  }
}

}  // namespace miaobi
