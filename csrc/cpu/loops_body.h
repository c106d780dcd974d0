// Bodies of the loops of loops.h: plain C++ that the compiler vectorises for the instruction set in
// force where this file is included, inside a namespace of that set's own (nothing here may be
// merged by the linker with another set's copy). Includes nothing for the same reason. The
// including file defines what compilers do not find by themselves:
//   Lanes: a vector of kLanes unsigned 64-bit numbers;
//   multiply(a, b): the products of the lanes' low halves;
//   store_pairs(out, a, b): a0 b0 a2 b2 ..., then a1 b1 a3 b3 ....
// Memory traffic per weight in trial loops: parent, base and each term's row read once, out written
// once, 2 bytes of draws, all in L1 and L2; what reaches main memory is tile.h's affair.

// Philox4x32-7 over counters (mask, generation, member, block), kLanes blocks to a vector. A word
// is the low half of a 64-bit lane; the high half may hold anything, since multiply() ignores it.
// So a product is the low word of the next round as it stands, and shifted down the high word. What
// does not depend on the block is hoisted by the compiler: the first round, and half of the next
// two.
void mask_draws(uint16_t* draws, int64_t first_block, int64_t blocks, int64_t generation,
                int64_t member, Key key) {
  constexpr int kGroups = kDrawBlocks / kLanes;
  const Lanes zero = {};
  const Lanes low = zero + 0xFFFFFFFFu;
  const Lanes multiplier0 = zero + 0xD2511F53u, multiplier1 = zero + 0xCD9E8D57u;
  Lanes lane_block = {};
  for (int i = 0; i < kLanes; ++i) lane_block[i] = i / 2 + i % 2 * (kLanes / 2);
  for (int64_t done = 0; done < blocks; done += kDrawBlocks) {
    for (int group = 0; group < kGroups; ++group) {
      Lanes c0 = zero + static_cast<uint32_t>(kPurposeMask);
      Lanes c1 = zero + static_cast<uint32_t>(generation);
      Lanes c2 = zero + static_cast<uint32_t>(member);
      Lanes c3 = lane_block + static_cast<uint64_t>(first_block + done + group * kLanes);
      uint32_t k0 = key.low, k1 = key.high;
      for (int round = 0; round < kMaskRounds; ++round) {
        const Lanes product0 = multiply(c0, multiplier0), product1 = multiply(c2, multiplier1);
        c0 = (product1 >> 32) ^ c1 ^ (zero + k0);
        c1 = product1;
        c2 = (product0 >> 32) ^ c3 ^ (zero + k1);
        c3 = product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
      }
      store_pairs(draws + 8 * (done + group * kLanes), (c0 & low) | (c1 << 32),
                  (c2 & low) | (c3 << 32));
    }
  }
}

template <class S, int kTerms, bool kMasked, int kLimits>
void trial_loop(const Span<S>& span, typename S::Stored* __restrict out, int64_t begin,
                int64_t end) {
  const typename S::Stored* __restrict parent = span.parent;
  const typename S::Stored* __restrict base = span.base;
  const uint16_t* __restrict draws = span.draws;
  const uint32_t threshold = static_cast<uint32_t>(span.threshold);
  const Bounds bounds = span.bounds;
  const typename S::Stored* rows[kMaxTerms] = {};
  float c[kMaxTerms] = {};
  for (int m = 0; m < kTerms; ++m) {
    rows[m] = span.rows[m];
    c[m] = span.coefficients[m];
  }
  for (int64_t j = begin; j < end; ++j) {
    const float b = S::widen(base[j]);
    float v = b;
    for (int m = 0; m < kTerms; ++m) v = v + c[m] * (S::widen(rows[m][j]) - b);
    const bool take = kMasked ? draws[j] < threshold : true;
    out[j] = trial_weight<S, kLimits>(parent[j], v, take, bounds);
  }
}

// bfloat16, two weights at a time: halves of a 32-bit word are widened, rounded and put back in
// place, which needs none of the slow moves between 16- and 32-bit lanes.
inline uint32_t pair_at(const uint16_t* row, int64_t j) {
  uint32_t pair;
  memcpy(&pair, row + j, sizeof pair);
  return pair;
}

// The trial of one weight, in the high half; `parent` is the parent's value there.
template <int kTerms, int kLimits>
inline uint32_t trial_high(uint32_t parent, uint32_t base, const uint32_t* rows, const float* c,
                           bool take, Bounds bounds) {
  const float b = float_of(base);
  float v = b;
  for (int m = 0; m < kTerms; ++m) v = v + c[m] * (float_of(rows[m]) - b);
  v = limited<BFloat16, kLimits>(static_cast<uint16_t>(parent >> 16), v, bounds);
  const uint32_t bits = bits_of(v);
  const uint32_t rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  const bool finite = (bits & 0x7FFFFFFFu) < 0x7F7F8000u;  // from there on it rounds to infinity
  return (take & finite) ? rounded : parent;
}

template <int kTerms, bool kMasked, int kLimits>
void trial_pairs(const Span<BFloat16>& span, uint16_t* __restrict out, int64_t begin, int64_t end) {
  constexpr uint32_t kHigh = 0xFFFF0000u;
  const uint16_t* __restrict parent = span.parent;
  const uint16_t* __restrict base = span.base;
  const uint16_t* __restrict draws = span.draws;
  const uint32_t limit = static_cast<uint32_t>(span.threshold - 1);
  const uint32_t high_limit = limit << 16 | 0xFFFFu;
  const Bounds bounds = span.bounds;
  const uint16_t* rows[kMaxTerms] = {};
  float c[kMaxTerms] = {};
  for (int m = 0; m < kTerms; ++m) {
    rows[m] = span.rows[m];
    c[m] = span.coefficients[m];
  }
  for (int64_t j = begin; j < end; j += 2) {
    const uint32_t p = pair_at(parent, j), b = pair_at(base, j);
    const uint32_t d = kMasked ? pair_at(draws, j) : 0;
    uint32_t low[kMaxTerms] = {}, high[kMaxTerms] = {};
    for (int m = 0; m < kTerms; ++m) {
      const uint32_t row = pair_at(rows[m], j);
      low[m] = row << 16;
      high[m] = row & kHigh;
    }
    const bool take_low = kMasked ? (d & 0xFFFFu) <= limit : true;
    const bool take_high = kMasked ? d <= high_limit : true;
    const uint32_t first = trial_high<kTerms, kLimits>(p << 16, b << 16, low, c, take_low, bounds);
    const uint32_t second =
        trial_high<kTerms, kLimits>(p & kHigh, b & kHigh, high, c, take_high, bounds);
    const uint32_t both = first >> 16 | (second & kHigh);
    memcpy(out + j, &both, sizeof both);
  }
}

template <class S, int kTerms, bool kMasked, int kLimits>
void trial_span(const Span<S>& span, typename S::Stored* out, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const int64_t odd = end > begin ? (end - begin) % 2 : 0;
    trial_pairs<kTerms, kMasked, kLimits>(span, out, begin, end - odd);
    trial_loop<S, kTerms, kMasked, kLimits>(span, out, end - odd, end);
  } else {
    trial_loop<S, kTerms, kMasked, kLimits>(span, out, begin, end);
  }
}

template <class S, int kTerms, bool kMasked>
void trial_limits(const Span<S>& span, typename S::Stored* out, int64_t size, int64_t nonneg) {
  const bool bounded = span.bounds.lower > -INFINITY || span.bounds.upper < INFINITY;
  if (bounded) {
    trial_span<S, kTerms, kMasked, kBounded>(span, out, 0, nonneg);
  } else {
    trial_span<S, kTerms, kMasked, kUnlimited>(span, out, 0, nonneg);
  }
  trial_span<S, kTerms, kMasked, kNonNegative>(span, out, nonneg, size);
}

template <class S, int kTerms>
void trial_terms(const Span<S>& span, typename S::Stored* out, int64_t size, int64_t nonneg) {
  if (span.draws != nullptr) {
    trial_limits<S, kTerms, true>(span, out, size, nonneg);
  } else {
    trial_limits<S, kTerms, false>(span, out, size, nonneg);
  }
}

template <class S>
void trial(const Span<S>& span, typename S::Stored* out, int64_t size, int64_t nonneg) {
  switch (span.terms) {
    case 0:
      return trial_terms<S, 0>(span, out, size, nonneg);
    case 1:
      return trial_terms<S, 1>(span, out, size, nonneg);
    case 2:
      return trial_terms<S, 2>(span, out, size, nonneg);
    case 3:
      return trial_terms<S, 3>(span, out, size, nonneg);
    case 4:
      return trial_terms<S, 4>(span, out, size, nonneg);
    case 5:
      return trial_terms<S, 5>(span, out, size, nonneg);
  }
}
