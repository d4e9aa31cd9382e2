// SPDX-License-Identifier: MIT
// The segmenter on a dictionary small enough to reckon by hand, every width of text, and random text.
#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "miaobi/check.h"
#include "miaobi/encoder.h"
#include "miaobi/segmenter.h"
#include "small_jieba.h"

using miaobi::Segmenter;
using miaobi::TextView;

namespace {

using Ends = std::vector<int64_t>;

Ends cut(const Segmenter& segmenter, const std::u32string& text, bool hmm) {
  Ends ends;
  segmenter.cut(TextView::of(text), hmm, ends);
  return ends;
}

}  // namespace

TEST_CASE("the most probable path, letters joined, other characters alone") {
  const Segmenter segmenter(small_jieba());
  CHECK(segmenter.total() == 224);
  CHECK(cut(segmenter, U"\u4E00\u4E01\u4E02", false) == Ends{3});  // 30/224 > 100/224 * 1/224
  CHECK(cut(segmenter, U"\u4E00\u4E01\u4E02\u4E02", false) == Ends{3, 4});
  CHECK(cut(segmenter, U"\u4E03\u4E03ab1.a1\r\n\r\xE9", false) == Ends{1, 2, 5, 6, 8, 10, 11, 12});
  CHECK(cut(segmenter, U"", true).empty());
}

TEST_CASE("the HMM joins what the dictionary leaves alone") {
  const Segmenter segmenter(small_jieba());
  CHECK(cut(segmenter, U"\u4E06\u4E07\u4E08", true) == Ends{2, 3});
  CHECK(cut(segmenter, U"\u4E06\u4E07\u4E08", false) == Ends{1, 2, 3});
  CHECK(cut(segmenter, U"b2.5%+-b", true) == Ends{5, 7, 8});
}

TEST_CASE("a user's words hide the dictionary's and stay with their segmenter") {
  Segmenter segmenter(small_jieba());
  const Segmenter other(small_jieba());
  const std::u32string word = U"\u4E00\u4E01\u4E02", long_word = U"\u4E03\u4E04\u4E05\u4E06";
  segmenter.add_word(TextView::of(word), 0);
  CHECK(segmenter.frequency(TextView::of(word)) == 0);
  CHECK(cut(segmenter, word, false) == Ends{2, 3});
  CHECK(cut(other, word, false) == Ends{3});
  segmenter.add_word(TextView::of(long_word), segmenter.suggest_frequency(TextView::of(long_word)));
  CHECK(cut(segmenter, long_word, false) == Ends{4});
  CHECK_THROWS_AS(segmenter.add_word({}, 1), miaobi::Error);
  CHECK_THROWS_AS(segmenter.add_word(TextView::of(word), -1), miaobi::Error);
  // Enough words for the table to grow many times.
  for (char32_t c = 0; c < 5000; ++c) segmenter.add_word(TextView::of(std::u32string{0x4E00 + c, 0x5000 + c}), 1 + c);
  for (char32_t c = 0; c < 5000; ++c) {
    CHECK(segmenter.frequency(TextView::of(std::u32string{0x4E00 + c, 0x5000 + c})) == 1 + c);
  }
}

TEST_CASE("what is kept whole, and every width of text") {
  Segmenter segmenter(small_jieba());
  const std::u32string kept = U"\u4E01, \u4E02";
  segmenter.keep_whole(TextView::of(kept));
  CHECK(cut(segmenter, U"\u4E00\u4E01, \u4E02\u4E02", false) == Ends{1, 5, 6});
  const std::string narrow = "a1 b2";
  const std::u16string wide(narrow.begin(), narrow.end());
  const Ends expected = cut(segmenter, std::u32string(narrow.begin(), narrow.end()), true);
  Ends one, two;
  segmenter.cut({narrow.data(), 5, 1}, true, one);
  segmenter.cut({wide.data(), 5, 2}, true, two);
  CHECK(one == expected);
  CHECK(two == expected);
}

TEST_CASE("parts and windows leave no trace: blocks and words longer than both") {
  Segmenter segmenter(small_jieba());
  std::u32string kept;
  for (int i = 0; i < 700; ++i) kept += i % 3 == 0 ? U'\u4E03' : U'\u4E04';
  segmenter.add_word(TextView::of(kept), 1'000'000);
  // A unit whose cut is known, so often that it meets every boundary at every place.
  const std::u32string unit = U"\u4E00\u4E01\u4E02\u4E03\r\n\u4E04\u4E05a1";
  const Ends once = cut(segmenter, unit, false);
  CHECK(once == Ends{3, 4, 6, 8, 10});
  for (const int repeat : {1, 40, 1300}) {
    std::u32string text = kept;  // one block of 700 and up
    Ends expected{700};
    for (int i = 0; i < repeat; ++i) {
      for (const int64_t end : once) expected.push_back(static_cast<int64_t>(text.size()) + end);
      text += unit;
    }
    CHECK(cut(segmenter, text, false) == expected);
  }
  std::u32string block;  // no boundary for the window to stop at
  Ends expected;
  for (int i = 0; i < 5000; ++i) {
    block += U"\u4E00\u4E01\u4E02";
    expected.push_back(3 * i + 3);
  }
  CHECK(cut(segmenter, block, false) == expected);
}

TEST_CASE("any code units are cut without gaps") {
  Segmenter segmenter(small_jieba());
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) {
    std::u16string text(random() % 6000, u' ');
    for (char16_t& c : text) {
      c = static_cast<char16_t>(random() % 4 == 0 ? random() & 0xFFFF : 0x4E00 + random() % 10);
    }
    const TextView view{text.data(), static_cast<int64_t>(text.size()), 2};
    if (text.size() > 20) {
      segmenter.add_word(view.part(0, 1 + static_cast<int64_t>(random() % 12)), static_cast<int64_t>(random() % 1000));
    }
    for (const bool hmm : {false, true}) {
      Ends ends;
      segmenter.cut(view, hmm, ends);
      int64_t before = 0;
      for (const int64_t end : ends) {
        REQUIRE(end > before);
        before = end;
      }
      CHECK(before == view.size);
    }
  }
}

TEST_CASE("any text is cut without gaps, and encoded without loss") {
  Segmenter segmenter(small_jieba());
  segmenter.keep_whole(TextView::of(U"\u4E05\u4E05"));
  const std::u32string word = U"\u4E00\u4E01";
  const std::vector<TextView> words{TextView::of(word)};
  const miaobi::Encoder encoder(words, 7, 263);
  std::mt19937 random(1);
  const std::u32string alphabet = U"\u4E00\u4E01\u4E02\u4E03\u4E04\u4E05\u4E06\u4E07ab1.%-+ \r\n\u3000\xE9\U0001F409";
  for (int i = 0; i < 2000; ++i) {
    std::u32string text(random() % 40, U' ');
    for (char32_t& c : text) c = alphabet[random() % alphabet.size()];
    for (const bool hmm : {false, true}) {
      int64_t before = 0;
      for (const int64_t end : cut(segmenter, text, hmm)) {
        CHECK(end > before);
        before = end;
      }
      CHECK(before == static_cast<int64_t>(text.size()));
      std::vector<int32_t> ids;
      std::vector<miaobi::Span> offsets;
      encoder.encode(segmenter, TextView::of(text), hmm, ids, &offsets);
      CHECK(ids.size() == offsets.size());
      std::vector<miaobi::Span> found;
      segmenter.cut_for_search(TextView::of(text), hmm, found);
      segmenter.cut_all(TextView::of(text));
    }
  }
  std::vector<int32_t> ids;
  CHECK_THROWS_AS(encoder.encode(segmenter, TextView::of(std::u32string(1, 0xD800)), false, ids, nullptr),
                  miaobi::Error);
}
