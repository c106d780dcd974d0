// Bodies of the loops of loops.h on vectors of the width of the instruction set that is in force
// where this file is included, inside a namespace of that set's own (nothing here may be merged by
// the linker with another set's copy; nothing is included for the same reason). The including file
// defines kFloats, the floats in a vector, the types below, and what compilers do not find by
// themselves:
//   Floats, Words: kFloats floats, 32-bit words; Halves: 2 kFloats 16-bit words;
//   Lanes: kFloats / 2 words of 64 bits;
//   multiply(a, b): the products of the lanes' low halves;
//   pair(a, b): the low halves of a, with those of b as high halves;
//   below(a, b, limit): bits of 8 weights a lane, in the lanes' order, set where a weight's 16 bits
//     are at most `limit`; the lane's first four are in a, the others in b;
//   least(a, b): a < b ? a : b;
//   choose(bits, yes, no, exponent): yes where the weight's bit is set and yes has not all bits of
//     `exponent`, else no;
//   widen_half(stored, parts), round_half(parts): between float16 and two vectors of floats, in an
//     order of their own; to nearest even, subnormals kept, what is not finite or becomes so to
//     infinity or NaN;
//   stream(to, vector): an aligned store past the caches.
// Bytes per weight: parent, base and each term's row read once, out written once, all in L1 and L2;
// what reaches main memory is tile.h's affair.

// Philox4x32-7 over counters (mask, generation, member, block), a block to a lane. A word is the
// low half of a lane; the high half may hold anything, since multiply() ignores it. So a product is
// the low word of the next round as it stands, and shifted down the high word. What does not depend
// on the block is hoisted by the compiler: the first round, and half of the next two. Two vectors
// at a time, since the rounds of one depend on each other.
void draw_mask(uint64_t* mask, int64_t words, int64_t first_block, int64_t generation,
               int64_t member, Key key, int32_t threshold) {
  constexpr int kLanes = kFloats / 2, kTogether = 2;
  static_assert(2 * 8 % (kTogether * kLanes) == 0, "two words are whole turns of the loop");
  const Lanes zero = {};
  const Lanes multiplier0 = zero + 0xD2511F53u, multiplier1 = zero + 0xCD9E8D57u;
  Lanes lane = {};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const uint16_t limit = static_cast<uint16_t>(threshold - 1);
  for (int64_t block = 0; block < words * 8; block += kTogether * kLanes) {
    Lanes c0[kTogether], c1[kTogether], c2[kTogether], c3[kTogether];
    for (int i = 0; i < kTogether; ++i) {
      c0[i] = zero + static_cast<uint32_t>(kPurposeMask);
      c1[i] = zero + static_cast<uint32_t>(generation);
      c2[i] = zero + static_cast<uint32_t>(member);
      c3[i] = lane + static_cast<uint64_t>(first_block + block + i * kLanes);
    }
    uint32_t k0 = key.low, k1 = key.high;
#pragma GCC unroll 7
    for (int round = 0; round < kMaskRounds; ++round) {
      for (int i = 0; i < kTogether; ++i) {
        const Lanes product0 = multiply(c0[i], multiplier0);
        const Lanes product1 = multiply(c2[i], multiplier1);
        c0[i] = (product1 >> 32) ^ c1[i] ^ (zero + k0);
        c1[i] = product1;
        c2[i] = (product0 >> 32) ^ c3[i] ^ (zero + k1);
        c3[i] = product0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < kTogether; ++i) {
      const uint64_t bits = below(pair(c0[i], c1[i]), pair(c2[i], c3[i]), limit);
      memcpy(reinterpret_cast<char*>(mask) + block + i * kLanes, &bits, kLanes);
    }
  }
}

template <class V, class T>
inline V load(const T* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
inline void keep(T* to, V v) {
  memcpy(to, &v, sizeof v);
}

template <class V, class T>
inline void store(T* to, V v, bool streaming) {
  if (streaming) {
    stream(to, v);
  } else {
    keep(to, v);
  }
}

// How a vector register of stored weights becomes vectors of floats and back.
template <class S>
struct Register;

template <>
struct Register<Float32> {
  using Vector = Words;
  static constexpr int kParts = 1;
  static constexpr uint32_t kExponent = 0x7F800000u;
  static void widen(Words stored, Floats* parts) { parts[0] = reinterpret_cast<Floats>(stored); }
  static Words round(const Floats* parts) { return reinterpret_cast<Words>(parts[0]); }
};

// bfloat16: the even weights and the odd ones are the halves of 32-bit words, and are widened,
// rounded and put back in place, which needs none of the slow moves between 16- and 32-bit lanes.
template <>
struct Register<BFloat16> {
  using Vector = Halves;
  static constexpr int kParts = 2;
  static constexpr uint16_t kExponent = 0x7F80u;
  static void widen(Halves stored, Floats* parts) {
    const Words words = reinterpret_cast<Words>(stored);
    parts[0] = reinterpret_cast<Floats>(words << 16);
    parts[1] = reinterpret_cast<Floats>(words & 0xFFFF0000u);
  }
  // To nearest even, by integers: the instruction for it flushes subnormals. NaN is made infinity
  // first, since a carry could make a number of it.
  static Words rounded(Floats v) {
    const Words bits = reinterpret_cast<Words>(least(v, Floats{} + __builtin_inff()));
    return bits + 0x7FFFu + ((bits >> 16) & 1u);
  }
  static Halves round(const Floats* parts) {
    return reinterpret_cast<Halves>((rounded(parts[0]) >> 16) | (rounded(parts[1]) & 0xFFFF0000u));
  }
};

template <>
struct Register<Float16> {
  using Vector = Halves;
  static constexpr int kParts = 2;
  static constexpr uint16_t kExponent = 0x7C00u;
  static void widen(Halves stored, Floats* parts) { widen_half(stored, parts); }
  static Halves round(const Floats* parts) { return round_half(parts); }
};

// As limited() of deevo/trials.h.
template <int kLimits>
inline Floats limit(Floats parent, Floats mutant, Bounds bounds) {
  if (kLimits == kNonNegative) return mutant > 0.0f ? mutant : 0.5f * parent;
  const Floats below = 0.5f * (bounds.lower + parent), above = 0.5f * (bounds.upper + parent);
  return mutant < bounds.lower ? below : (mutant > bounds.upper ? above : mutant);
}

// The weights of one register at j, a multiple of their number.
template <class S, int kTerms, int kLimits>
inline void trial_register(const Span<S>& span, const typename S::Stored* const* rows,
                           const float* c, typename S::Stored* out, int64_t j) {
  using R = Register<S>;
  using V = typename R::Vector;
  const V parent = load<V>(span.parent + j);
  Floats base[R::kParts], v[R::kParts], row[R::kParts];
  R::widen(load<V>(span.base + j), base);
  for (int part = 0; part < R::kParts; ++part) v[part] = base[part];
  for (int m = 0; m < kTerms; ++m) {
    R::widen(load<V>(rows[m] + j), row);
    for (int part = 0; part < R::kParts; ++part) {
      v[part] = v[part] + c[m] * (row[part] - base[part]);
    }
  }
  if (kLimits != kUnlimited) {
    R::widen(parent, row);
    for (int part = 0; part < R::kParts; ++part) {
      v[part] = limit<kLimits>(row[part], v[part], span.bounds);
    }
  }
  const uint32_t bits = static_cast<uint32_t>(span.mask[j / 64] >> (j % 64));
  store(out + j, choose(bits, R::round(v), parent, R::kExponent), span.stream);
}

template <class S, int kTerms, int kLimits>
inline void trial_single(const Span<S>& span, const typename S::Stored* const* rows, const float* c,
                         typename S::Stored* out, int64_t j) {
  const float base = S::widen(span.base[j]);
  float v = base;
  for (int m = 0; m < kTerms; ++m) v = v + c[m] * (S::widen(rows[m][j]) - base);
  const bool take = span.mask[j / 64] >> (j % 64) & 1;
  out[j] = trial_weight<S, kLimits>(span.parent[j], v, take, span.bounds);
}

// Columns [begin, end): whole registers where there are, the rest one by one. A cache line of the
// span's `fetch` is asked for with each line that is written.
template <class S, int kTerms, int kLimits>
void trial_loop(const Span<S>& span, typename S::Stored* out, int64_t begin, int64_t end) {
  constexpr int64_t kWeights = Register<S>::kParts * kFloats;
  constexpr int64_t kLine = 64 / sizeof(typename S::Stored);
  const typename S::Stored* rows[kMaxTerms] = {};
  float c[kMaxTerms] = {};
  for (int m = 0; m < kTerms; ++m) {
    rows[m] = span.rows[m];
    c[m] = span.coefficients[m];
  }
  int64_t j = begin;
  for (; j < end && j % kWeights != 0; ++j) {
    trial_single<S, kTerms, kLimits>(span, rows, c, out, j);
  }
  for (; j + kWeights <= end; j += kWeights) {
    if (j % kLine == 0 && j / kLine < span.fetch_lines) {
      __builtin_prefetch(span.fetch + j / kLine * 64, 0, 2);
    }
    trial_register<S, kTerms, kLimits>(span, rows, c, out, j);
  }
  for (; j < end; ++j) trial_single<S, kTerms, kLimits>(span, rows, c, out, j);
}

template <class S, int kTerms>
void trial_terms(const Span<S>& span, typename S::Stored* out, int64_t size, int64_t nonneg) {
  const float infinity = __builtin_inff();
  if (span.bounds.lower > -infinity || span.bounds.upper < infinity) {
    trial_loop<S, kTerms, kBounded>(span, out, 0, nonneg);
  } else {
    trial_loop<S, kTerms, kUnlimited>(span, out, 0, nonneg);
  }
  trial_loop<S, kTerms, kNonNegative>(span, out, nonneg, size);
}

template <class S>
void trial(const Span<S>& span, typename S::Stored* out, int64_t size, int64_t nonneg) {
  static constexpr decltype(&trial_terms<S, 0>) kByTerms[kMaxTerms + 1] = {
      trial_terms<S, 0>, trial_terms<S, 1>, trial_terms<S, 2>,
      trial_terms<S, 3>, trial_terms<S, 4>, trial_terms<S, 5>};
  kByTerms[span.terms](span, out, size, nonneg);
}
