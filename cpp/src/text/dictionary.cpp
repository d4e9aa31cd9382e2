// SPDX-License-Identifier: MIT
// Reading jieba's dictionary, as jieba's gen_pfdict does.
#include "text/dictionary.h"

#include <charconv>
#include <cmath>

#include "miaobi/check.h"
#include "text/utf8.h"

namespace miaobi {
namespace {

// A dictionary has about a beginning of a word for each ten bytes.
constexpr int64_t kBytesPerNode = 10;

std::string_view strip(std::string_view line) {
  constexpr std::string_view kSpace = " \t\n\r\v\f";
  const size_t begin = line.find_first_not_of(kSpace);
  return begin == std::string_view::npos ? std::string_view{}
                                         : line.substr(begin, line.find_last_not_of(kSpace) + 1 - begin);
}

}  // namespace

uint32_t WordTable::value_of(int64_t frequency) {
  const auto [place, is_new] = values_.try_emplace(frequency, static_cast<uint32_t>(frequencies_.size()));
  if (is_new) {
    frequencies_.push_back(frequency);
    logs_.push_back(std::log(static_cast<double>(frequency)));
  }
  return place->second;
}

Dictionary::Dictionary(const JiebaFiles& files)
    : words(static_cast<int64_t>(files.dict.size()) / kBytesPerNode),
      hmm(files.folder + "/finalseg", files.prob_start, files.prob_trans, files.prob_emit) {
  read(files.dict, files.folder + "/dict.txt");
}

void Dictionary::read(std::string_view text, const std::string& path) {
  std::u32string all;
  std::vector<Trie::Entry> entries;
  all.reserve(text.size() / 4);  // a line of jieba's is 3 characters of 3 bytes each, a number and a tag
  entries.reserve(text.size() / 12);
  for (size_t begin = 0; begin < text.size();) {
    const size_t newline = text.find('\n', begin);
    const size_t end = newline == std::string_view::npos ? text.size() : newline;
    const auto fail = [&](const char* reason) {
      throw FormatError(path, static_cast<int64_t>(begin),
                        std::string("expected \"word frequency\" in each line, ") + reason);
    };
    const std::string_view line = strip(text.substr(begin, end - begin));
    const size_t length = all.size();
    size_t at = 0;
    while (at < line.size() && line[at] != ' ') {
      const int32_t c = read_utf8(line, at);
      if (c < 0) fail("got what is not UTF-8");
      all.push_back(static_cast<char32_t>(c));
    }
    const std::string_view number = line.substr(at < line.size() ? at + 1 : at);
    int64_t frequency = -1;
    const char* const stop = std::from_chars(number.data(), number.data() + number.size(), frequency).ptr;
    const bool whole = stop == number.data() + number.size() || *stop == ' ';
    if (all.size() == length || frequency < 0 || !whole) fail("got a line without one");
    if (frequency > kMaxTotal - total) fail("got frequencies that sum up to more than 2^53");
    entries.push_back({static_cast<int64_t>(all.size()), words.value_of(frequency)});
    total += frequency;
    begin = end + 1;
  }
  words.trie.set_all(all, entries);
  if (total == 0) throw FormatError(path, -1, "expected words, got none with a frequency");
}

std::shared_ptr<const Dictionary> read_dictionary(const JiebaFiles& files) {
  return std::make_shared<const Dictionary>(files);
}

}  // namespace miaobi
