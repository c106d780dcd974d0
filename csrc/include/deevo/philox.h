// Philox4x32-R, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011), and how deevo counts: counter = (purpose, generation, member, block),
// key = (seed low, seed high). 7 rounds for crossover masks, 10 for everything else.
#pragma once

#include "deevo/common.h"

namespace deevo {

enum Purpose : uint32_t {
  kPurposeMask = 1,
  kPurposeGeneMask = 2,
  kPurposeChoice = 3,
  kPurposeParents = 4,
  kPurposeF = 5,
  kPurposeCR = 6,
  kPurposeFrequency = 7,
  kPurposeJRand = 8,
  kPurposeArchive = 9,
  kPurposePermutation = 10,
  kPurposeBatch = 11,
  kPurposeDirection = 12,
  kPurposeFirstVirtual = 13,
  kPurposePart = 14,
};

constexpr int kMaskRounds = 7;
constexpr int kRounds = 10;

struct Words {
  uint32_t w[4];
};

struct Key {
  uint32_t low, high;
};

DEEVO_HD Key key_of(int64_t seed) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)};
}

template <int kNumRounds>
DEEVO_HD Words philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, Key key) {
  uint32_t k0 = key.low, k1 = key.high;
  for (int round = 0; round < kNumRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

DEEVO_HD Words draw(Purpose purpose, int64_t generation, int64_t member, uint32_t block, Key key) {
  return philox4x32<kRounds>(purpose, static_cast<uint32_t>(generation),
                             static_cast<uint32_t>(member), block, key);
}

// Uniform on (0, 1): never 0 or 1, exact in float64.
DEEVO_HD double uniform(uint32_t word) { return (word + 0.5) * 0x1p-32; }

// Uniform on {0, ..., n - 1}.
DEEVO_HD uint32_t mulhi(uint32_t word, uint32_t n) {
  return static_cast<uint32_t>((static_cast<uint64_t>(word) * n) >> 32);
}

}  // namespace deevo
