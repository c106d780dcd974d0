// Bodies of the loops of loops.h: plain C++ that the compiler vectorises for the instruction set in
// force where this file is included, inside a namespace of that set's own (nothing here may be
// merged by the linker with another set's copy). Includes nothing for the same reason.

void mask_draws(uint16_t* draws, int64_t first_block, int64_t blocks, int64_t generation,
                int64_t member, Key key) {
  constexpr int64_t kBatch = 64;
  uint32_t words[4][kBatch];
  for (int64_t done = 0; done < blocks; done += kBatch) {
    const uint32_t first = static_cast<uint32_t>(first_block + done);
    for (uint32_t j = 0; j < kBatch; ++j) {
      const Words block =
          philox4x32<kMaskRounds>(kPurposeMask, static_cast<uint32_t>(generation),
                                  static_cast<uint32_t>(member), first + j, key);
      for (int w = 0; w < 4; ++w) words[w][j] = block.w[w];
    }
    const int64_t count = blocks - done < kBatch ? blocks - done : kBatch;
    uint16_t* out = draws + 8 * done;
    for (int64_t j = 0; j < count; ++j) {
      for (int w = 0; w < 4; ++w) {
        out[8 * j + 2 * w] = static_cast<uint16_t>(words[w][j]);
        out[8 * j + 2 * w + 1] = static_cast<uint16_t>(words[w][j] >> 16);
      }
    }
  }
}

template <class S, int kTerms, bool kMasked, bool kNonNegative>
void trial_loop(const Span<S>& span, typename S::Stored* __restrict out, int64_t begin,
                int64_t end) {
  const typename S::Stored* __restrict parent = span.parent;
  const typename S::Stored* __restrict base = span.base;
  const uint16_t* __restrict draws = span.draws;
  const uint32_t threshold = static_cast<uint32_t>(span.threshold);
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
    out[j] = trial_weight<S, kNonNegative>(parent[j], v, take);
  }
}

template <class S, int kTerms>
void trial_terms(const Span<S>& span, typename S::Stored* out, int64_t size, int64_t nonneg) {
  if (span.draws != nullptr) {
    trial_loop<S, kTerms, true, false>(span, out, 0, nonneg);
    trial_loop<S, kTerms, true, true>(span, out, nonneg, size);
  } else {
    trial_loop<S, kTerms, false, false>(span, out, 0, nonneg);
    trial_loop<S, kTerms, false, true>(span, out, nonneg, size);
  }
}

template <class S>
void trial(const Span<S>& span, typename S::Stored* out, int64_t size, int64_t nonneg) {
  switch (span.terms) {
    case 0: return trial_terms<S, 0>(span, out, size, nonneg);
    case 1: return trial_terms<S, 1>(span, out, size, nonneg);
    case 2: return trial_terms<S, 2>(span, out, size, nonneg);
    case 3: return trial_terms<S, 3>(span, out, size, nonneg);
    case 4: return trial_terms<S, 4>(span, out, size, nonneg);
    case 5: return trial_terms<S, 5>(span, out, size, nonneg);
  }
}
