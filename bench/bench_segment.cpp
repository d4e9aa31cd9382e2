// SPDX-License-Identifier: MIT
// google-benchmark of the segmenter and of encoding, on jieba's dictionary.
//
//   MIAOBI_JIEBA=<folder of the package jieba> MIAOBI_TEXT=<UTF-8 file> bench_segment
//
// Without MIAOBI_TEXT the text is made of the dictionary's words, by frequency (fixed seed). Reports characters a
// second.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "miaobi/encoder.h"
#include "miaobi/segmenter.h"
#include "text/utf8.h"

namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read; set MIAOBI_JIEBA to the folder of the package jieba");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

struct Jieba {
  explicit Jieba(const std::string& folder)
      : folder(folder),
        dict(read_file(folder + "/dict.txt")),
        start(read_file(folder + "/finalseg/prob_start.py")),
        trans(read_file(folder + "/finalseg/prob_trans.py")),
        emit(read_file(folder + "/finalseg/prob_emit.py")) {}
  std::shared_ptr<const miaobi::Dictionary> read() const {
    return miaobi::read_dictionary({folder, dict, start, trans, emit});
  }
  std::string folder, dict, start, trans, emit;
};

const Jieba& jieba() {
  static const Jieba files([] {
    const char* const folder = std::getenv("MIAOBI_JIEBA");
    return std::string(folder != nullptr ? folder : ".");
  }());
  return files;
}

std::string made_text() {
  std::vector<std::string> words;
  std::vector<double> weights;
  std::istringstream lines(jieba().dict);
  std::string word, tag;
  for (double frequency = 0; lines >> word >> frequency && std::getline(lines, tag);) {
    words.push_back(word);
    weights.push_back(frequency);
  }
  std::mt19937 random(1);
  std::discrete_distribution<size_t> draw(weights.begin(), weights.end());
  std::string text;
  for (int i = 1; i <= 100'000; ++i) text += words[draw(random)] + (i % 20 == 0 ? "\xE3\x80\x82\n" : "");
  return text;
}

// The lines of the text, as two-byte characters; what needs four is left out.
const std::vector<std::u16string>& lines() {
  static const std::vector<std::u16string> result = [] {
    const char* const path = std::getenv("MIAOBI_TEXT");
    const std::string text = path != nullptr ? read_file(path) : made_text();
    std::vector<std::u16string> parts(1);
    for (size_t at = 0; at < text.size();) {
      const int32_t c = miaobi::read_utf8(text, at);
      if (c < 0) throw std::runtime_error("MIAOBI_TEXT: expected UTF-8");
      if (c < 0x10000) parts.back().push_back(static_cast<char16_t>(c));
      if (c == '\n') parts.emplace_back();
    }
    return parts;
  }();
  return result;
}

miaobi::TextView view(const std::u16string& line) { return {line.data(), static_cast<int64_t>(line.size()), 2}; }

template <class Body>
void over_lines(benchmark::State& state, Body&& body) {
  int64_t characters = 0;
  for (auto _ : state) {
    for (const std::u16string& line : lines()) {
      body(line);
      characters += static_cast<int64_t>(line.size());
    }
  }
  state.counters["characters"] = benchmark::Counter(static_cast<double>(characters), benchmark::Counter::kIsRate);
}

void load(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(jieba().read());
}
BENCHMARK(load)->Unit(benchmark::kMillisecond);

void segment(benchmark::State& state) {
  const miaobi::Segmenter segmenter(jieba().read());
  std::vector<int64_t> ends;
  over_lines(state, [&](const std::u16string& line) {
    ends.clear();
    segmenter.cut(view(line), state.range(0) != 0, ends);
    benchmark::DoNotOptimize(ends.data());
  });
}
BENCHMARK(segment)->ArgName("hmm")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

void encode(benchmark::State& state) {
  const miaobi::Segmenter segmenter(jieba().read());
  miaobi::WordCounter counter(32);
  std::vector<miaobi::TextView> texts;
  for (const std::u16string& line : lines()) texts.push_back(view(line));
  counter.add_words(segmenter, texts, {}, false);
  std::vector<miaobi::TextView> words;
  for (const auto& entry : counter.words()) words.push_back(miaobi::TextView::of(entry.first));
  const miaobi::Encoder encoder(words, 7, 263);
  std::vector<int32_t> ids;
  over_lines(state, [&](const std::u16string& line) {
    ids.clear();
    encoder.encode(segmenter, view(line), false, ids, nullptr);
    benchmark::DoNotOptimize(ids.data());
  });
}
BENCHMARK(encode)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
