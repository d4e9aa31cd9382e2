// SPDX-License-Identifier: MIT
// Text to ids: the segmenter's words looked up in a trie of the vocabulary; and the counts that a vocabulary is made
// of.
#include "miaobi/encoder.h"

#include "miaobi/check.h"
#include "miaobi/threads.h"
#include "text/trie.h"
#include "text/utf8.h"

namespace miaobi {

struct Encoder::Impl {
  Trie words;  // with the id, less that of the first word, plus 1
  int32_t first_byte, first_word;
};

Encoder::Encoder(std::span<const TextView> words, int32_t first_byte, int32_t first_word) {
  auto impl = std::make_unique<Impl>(Trie(2 * static_cast<int64_t>(words.size())), first_byte, first_word);
  for (size_t i = 0; i < words.size(); ++i) {
    MIAOBI_CHECK(words[i].size > 0 && impl->words.find(words[i]).value == 0,
                 "[tokenizer] expected every word once, got ", words[i].size > 0 ? "one twice" : "an empty one");
    impl->words.set(words[i], static_cast<uint32_t>(i + 1));
  }
  impl_ = std::move(impl);
}

Encoder::~Encoder() = default;

void Encoder::encode(const Segmenter& segmenter, TextView text, bool hmm, std::vector<int32_t>& ids,
                     std::vector<Span>* offsets) const {
  std::vector<int64_t> ends;
  ends.reserve(static_cast<size_t>(text.size));
  segmenter.cut(text, hmm, ends);
  const auto put = [&](int32_t id, int64_t begin, int64_t end) {
    ids.push_back(id);
    if (offsets != nullptr) offsets->push_back({begin, end});
  };
  int64_t begin = 0;
  for (const int64_t end : ends) {
    if (const uint32_t word = impl_->words.find(text.part(begin, end)).value; word != 0) {
      put(impl_->first_word + static_cast<int32_t>(word) - 1, begin, end);
    } else {
      for (int64_t i = begin; i < end; ++i) {
        const char32_t c = text[i];
        MIAOBI_CHECK(!is_half_surrogate(c),
                     "[tokenizer] expected valid Unicode, got half a surrogate pair at character ", i, " of the text");
        if (const uint32_t one = impl_->words.first(c).value; one != 0) {
          put(impl_->first_word + static_cast<int32_t>(one) - 1, i, i + 1);
        } else {
          write_utf8(c, [&](uint8_t byte) { put(impl_->first_byte + byte, i, i + 1); });
        }
      }
    }
    begin = end;
  }
}

void WordCounter::add_words(const Segmenter& segmenter, std::span<const TextView> texts, std::span<const int64_t> times,
                            bool hmm) {
  const int slots = get_num_threads();
  struct Part {
    Words words;
    std::vector<int64_t> ends;
    std::u32string word;
  };
  std::vector<Part> parts(static_cast<size_t>(slots));
  parallel_for_slots(static_cast<int64_t>(texts.size()), slots, [&](int64_t i, int slot) {
    Part& part = parts[static_cast<size_t>(slot)];
    const TextView text = texts[static_cast<size_t>(i)];
    const int64_t count = times.empty() ? 1 : times[static_cast<size_t>(i)];
    part.ends.clear();
    segmenter.cut(text, hmm, part.ends);
    int64_t begin = 0;
    for (const int64_t end : part.ends) {
      if (end - begin > 1 && end - begin <= max_word_) {
        part.word.clear();
        for (int64_t at = begin; at < end; ++at) part.word.push_back(text[at]);
        part.words[part.word] += count;
      }
      begin = end;
    }
  });
  for (const Part& part : parts) {
    for (const auto& [word, count] : part.words) words_[word] += count;
  }
}

void WordCounter::add_characters(TextView text) {
  for (int64_t i = 0; i < text.size; ++i) ++characters_[text[i]];
}

}  // namespace miaobi
