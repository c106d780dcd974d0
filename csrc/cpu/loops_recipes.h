// Bodies of the loops of compose and linear_scores, included behind loops_evaluation.h in the same
// places and under the same rules. The including file defines in addition
//   pack_high(a, b): the high halves of the words of two vectors, in order;
//   pack_half(parts): two vectors of floats as float16, in order; to nearest even, subnormals kept;
//   any(words): whether there is a bit in them.
// Vectors are whole: rows and buffers have room for a register beyond their last column, and what
// lies there is nobody's.
// Bytes per weight: a member's row read once for kMostTogether recipes, which stay in registers.

// Recipes [0, kRecipes) of kVectors vectors of columns from column j on. kDense: no coefficient
// is 0.
template <class S, int kRecipes, int kVectors, bool kDense>
inline void mix_vectors(const Mixture& x, int64_t j) {
  using Stored = typename S::Stored;
  constexpr int64_t kAhead = 1024 / sizeof(Stored), kInLine = 64 / sizeof(Stored);
  const Stored* first = static_cast<const Stored*>(x.base) + j;
  Floats base[kVectors], v[kRecipes][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) base[i] = read<S>(first + i * kFloats);
#pragma GCC unroll 8
  for (int k = 0; k < kRecipes; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) v[k][i] = base[i];
  }
  const float* c = x.coefficients;
  for (int64_t m = 0; m < x.terms; ++m, c += kMostTogether) {
    const Stored* row = static_cast<const Stored*>(x.rows[m]) + j;
    for (int64_t i = 0; i < kVectors * kFloats; i += kInLine) {
      __builtin_prefetch(row + kAhead + i, 0, 3);
    }
    Floats difference[kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) difference[i] = read<S>(row + i * kFloats) - base[i];
#pragma GCC unroll 8
    for (int k = 0; k < kRecipes; ++k) {
      if (!kDense && c[k] == 0.0f) continue;
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) v[k][i] = v[k][i] + c[k] * difference[i];
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kRecipes; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) keep(x.out + k * x.stride + j + i * kFloats, v[k][i]);
  }
}

template <class S, int kRecipes, bool kDense>
void mix_columns(const Mixture& x, int64_t begin, int64_t end) {
  constexpr int kVectors = 2;
  int64_t j = begin;
  for (; j + kVectors * kFloats <= end; j += kVectors * kFloats) {
    mix_vectors<S, kRecipes, kVectors, kDense>(x, j);
  }
  for (; j < end; j += kFloats) mix_vectors<S, kRecipes, 1, kDense>(x, j);
}

template <class S>
void mix(const Mixture& x, int64_t begin, int64_t end) {
  constexpr int kMany = kFloats == 16 ? 8 : 4;  // as many as there are registers for
  static_assert(kMostTogether % kMany == 0);
  if (x.recipes == 1) {
    return x.dense ? mix_columns<S, 1, true>(x, begin, end)
                   : mix_columns<S, 1, false>(x, begin, end);
  }
  Mixture some = x;
  for (int k = 0; k < x.recipes; k += kMany) {
    x.dense ? mix_columns<S, kMany, true>(some, begin, end)
            : mix_columns<S, kMany, false>(some, begin, end);
    some.coefficients += kMany;
    some.out += kMany * x.stride;
  }
}

template <class S>
void lessen(const void* source, float* least, int64_t count) {
  const auto* row = static_cast<const typename S::Stored*>(source);
  for (int64_t j = 0; j < count; ++j) {
    const float x = S::widen(row[j]);
    least[j] = x < least[j] ? x : least[j];
  }
}

void lift(const float* least, float* v, int64_t count) {
  for (int64_t j = 0; j < count; ++j) v[j] = v[j] > 0.0f ? v[j] : 0.5f * least[j];
}

// A register of stored weights from as many floats, which are not beyond storage.
template <class S>
inline typename Register<S>::Vector pack(const Floats* parts) {
  if constexpr (std::is_same_v<S, Float32>) {
    return reinterpret_cast<Words>(parts[0]);
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    Words rounded[2];
    for (int part = 0; part < 2; ++part) {
      const Words bits = reinterpret_cast<Words>(parts[part]);
      rounded[part] = bits + 0x7FFFu + ((bits >> 16) & 1u);
    }
    return pack_high(rounded[0], rounded[1]);
  } else {
    return pack_half(parts);
  }
}

template <class S>
inline typename Register<S>::Vector settled(const float* v, const typename S::Stored* base) {
  constexpr int kParts = Register<S>::kParts;
  typedef int32_t Integers __attribute__((vector_size(sizeof(Floats))));
  Floats parts[kParts];
  Words beyond = {};
  for (int part = 0; part < kParts; ++part) {
    parts[part] = load<Floats>(v + part * kFloats);
    const Words magnitude = reinterpret_cast<Words>(parts[part]) & 0x7FFFFFFFu;
    beyond |= reinterpret_cast<Words>(reinterpret_cast<Integers>(magnitude) >= Overflow<S>::kFrom);
  }
  if (__builtin_expect(any(beyond), 0)) {
    for (int part = 0; part < kParts; ++part) {
      const Words magnitude = reinterpret_cast<Words>(parts[part]) & 0x7FFFFFFFu;
      const Floats instead = read<S>(base + part * kFloats);
      parts[part] =
          reinterpret_cast<Integers>(magnitude) >= Overflow<S>::kFrom ? instead : parts[part];
    }
  }
  return pack<S>(parts);
}

template <class S>
void settle(const float* v, const void* base, void* target, int64_t count, bool streaming) {
  constexpr int64_t kWeights = Register<S>::kParts * kFloats;
  const auto* from = static_cast<const typename S::Stored*>(base);
  auto* to = static_cast<typename S::Stored*>(target);
  int64_t j = 0;
  for (; j + kWeights <= count; j += kWeights)
    store(to + j, settled<S>(v + j, from + j), streaming);
  if (j < count) {
    const auto last = settled<S>(v + j, from + j);
    memcpy(to + j, &last, (count - j) * sizeof(*to));
  }
}

// The sums of kMany candidates and two vectors stay in registers.
void accumulate(const float* x, int64_t x_stride, const float* c, int64_t terms, float* out,
                int64_t out_stride) {
  constexpr int kMany = kFloats == 16 ? 8 : 4;
  for (int64_t j = 0; j < kColumnsTogether; j += 2 * kFloats) {
    for (int first = 0; first < kMostTogether; first += kMany) {
      const float* row = x + j;
      Floats v[kMany][2];
#pragma GCC unroll 8
      for (int k = 0; k < kMany; ++k) {
        v[k][0] = load<Floats>(row);
        v[k][1] = load<Floats>(row + kFloats);
      }
      const float* factors = c + first;
      for (int64_t i = 0; i < terms; ++i, factors += kMostTogether) {
        row += x_stride;
        const Floats a = load<Floats>(row), b = load<Floats>(row + kFloats);
#pragma GCC unroll 8
        for (int k = 0; k < kMany; ++k) {
          v[k][0] = v[k][0] + factors[k] * a;
          v[k][1] = v[k][1] + factors[k] * b;
        }
      }
#pragma GCC unroll 8
      for (int k = 0; k < kMany; ++k) {
        keep(out + (first + k) * out_stride + j, v[k][0]);
        keep(out + (first + k) * out_stride + j + kFloats, v[k][1]);
      }
    }
  }
}

constexpr RecipeLoops kRecipes = {{mix<Float32>, mix<BFloat16>, mix<Float16>},
                                  {lessen<Float32>, lessen<BFloat16>, lessen<Float16>},
                                  lift,
                                  {settle<Float32>, settle<BFloat16>, settle<Float16>},
                                  accumulate};
