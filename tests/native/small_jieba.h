// SPDX-License-Identifier: MIT
// A dictionary of a few words in jieba's formats, for tests of the segmenter that need no package of Python.
#pragma once

#include <memory>

#include "miaobi/segmenter.h"

// U+4E00-U+4E09 are the characters of its words: 01 100, 012 30, 12 80, 3 5, 45 2 and the letters "a1" 7.
inline std::shared_ptr<const miaobi::Dictionary> small_jieba() {
  return miaobi::read_dictionary(
      {"small",
       "\xE4\xB8\x80\xE4\xB8\x81 100 n\n\xE4\xB8\x80\xE4\xB8\x81\xE4\xB8\x82 30\n\xE4\xB8\x81\xE4\xB8\x82 80 v\n"
       "\xE4\xB8\x83 5\n\xE4\xB8\x84\xE4\xB8\x85 2\na1 7\n",
       "P={'B': -0.3, 'E': -3.14e+100, 'M': -3.14e+100, 'S': -1.5}",
       "P={'B': {'E': -0.5, 'M': -0.9}, 'E': {'B': -0.6, 'S': -0.8}, 'M': {'E': -0.3, 'M': -1.2}, 'S': {'B': -0.7, "
       "'S': "
       "-0.7}}",
       "from __future__ import unicode_literals\nP={'B': {'\\u4e06': -1.0}, 'E': {'\\u4e07': -1.0}, 'M': {'\\u4e09': "
       "-9.0},\n 'S': "
       "{'\\u4e06': -9.0, '\\u4e07': -9.0, '\\u4e08': -1.0}}"});
}
