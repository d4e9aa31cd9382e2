// SPDX-License-Identifier: MIT
// libFuzzer entry for the segmenter: any code points are cut without gaps in every mode; any dictionary is read or
// refused with FormatError.
//
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Icpp/include -Icpp/src -Itests/native
//           tests/fuzz/fuzz_segmenter.cpp cpp/src/text/[bdhst]*.cpp -o fuzz_segmenter
//   ./fuzz_segmenter -max_total_time=60 -max_len=16384
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "miaobi/check.h"
#include "miaobi/segmenter.h"
#include "small_jieba.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto dictionary = small_jieba();
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    miaobi::read_dictionary({"fuzz", bytes, "P={'B': -1.0}", "P={'B': {'E': -1.0}}", bytes});
  } catch (const miaobi::FormatError&) {
  }
  std::u16string text(size / 2, u' ');
  std::memcpy(text.data(), data, text.size() * 2);
  miaobi::Segmenter segmenter(dictionary);
  const auto length = static_cast<int64_t>(text.size());
  const miaobi::TextView view{text.data(), length, 2};
  if (length > 3) {
    segmenter.add_word(view.part(0, 2), text[2]);
    segmenter.keep_whole(view.part(1, 3));
  }
  for (const bool hmm : {false, true}) {
    std::vector<int64_t> ends;
    segmenter.cut(view, hmm, ends);
    int64_t before = 0;
    for (const int64_t end : ends) {
      if (end <= before) __builtin_trap();
      before = end;
    }
    if (before != length) __builtin_trap();
    std::vector<miaobi::Span> words;
    segmenter.cut_for_search(view, hmm, words);
  }
  segmenter.cut_all(view);
  return 0;
}
