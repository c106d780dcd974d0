// Bodies of the loops of fold, head and loss_and_rank, included behind loops_body.h in the same
// places and under the same rules. The including file defines in addition
//   Few: kFloats 16-bit words;
//   widen_few(stored), narrow_few(v): between float16 and a vector of floats, in order; to nearest
//     even, subnormals and infinity kept, overflow to infinity; of NaN only 0x7FC00000 is narrowed,
//     to 0x7E00.
// Every sum over numbers has the order that its formula states: what is worked on at the same time
// are the lanes of a dot product, samples, classes, or channels.

template <class From>
inline Floats read(const typename From::Stored* from) {
  if constexpr (std::is_same_v<From, Float32>) {
    return load<Floats>(from);
  } else if constexpr (std::is_same_v<From, BFloat16>) {
    return reinterpret_cast<Floats>(__builtin_convertvector(load<Few>(from), Words) << 16);
  } else {
    return widen_few(load<Few>(from));
  }
}

template <class To>
inline void write(typename To::Stored* to, Floats v) {
  const Floats x = v != v ? Floats{} + float_of(0x7FC00000u) : v;  // one pattern for every NaN
  if constexpr (std::is_same_v<To, Float32>) {
    keep(to, x);
  } else if constexpr (std::is_same_v<To, BFloat16>) {
    const Words bits = reinterpret_cast<Words>(x);
    keep(to, __builtin_convertvector((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16, Few));
  } else {
    keep(to, narrow_few(x));
  }
}

template <class From, class To>
void scale(const void* source, void* target, int64_t count, float factor) {
  const auto* from = static_cast<const typename From::Stored*>(source);
  auto* to = static_cast<typename To::Stored*>(target);
  constexpr bool kHalf = std::is_same_v<From, Float16> || std::is_same_v<To, Float16>;
  int64_t i = 0;
  if (kFloats > 4 || kHalf) {  // elsewhere compilers find more of the instructions that pack
    for (; i + kFloats <= count; i += kFloats) write<To>(to + i, read<From>(from + i) * factor);
  }
  if (i > 0 && i < count) {
    // Again some that are done.
    i = count - kFloats;
    write<To>(to + i, read<From>(from + i) * factor);
    return;
  }
  for (; i < count; ++i) to[i] = To::round(From::widen(from[i]) * factor);
}

template <class From>
void widen(const void* source, float* to, int64_t count) {
  const auto* from = static_cast<const typename From::Stored*>(source);
  int64_t i = 0;
  for (; i + kFloats <= count; i += kFloats) keep(to + i, read<From>(from + i));
  for (; i < count; ++i) to[i] = From::widen(from[i]);
}

template <class From>
void pool(const void* source, int64_t positions, int64_t channels, float* pooled) {
  const auto* features = static_cast<const typename From::Stored*>(source);
  const float inverse = static_cast<float>(1.0 / static_cast<double>(positions));
  for (int64_t c = 0; c < channels; ++c) pooled[c] = 0.0f;
  for (int64_t p = 0; p < positions; ++p) {
    const auto* at = features + p * channels;
    int64_t c = 0;
    for (; c + kFloats <= channels; c += kFloats) {
      keep(pooled + c, load<Floats>(pooled + c) + read<From>(at + c));
    }
    for (; c < channels; ++c) pooled[c] = pooled[c] + From::widen(at[c]);
  }
  for (int64_t c = 0; c < channels; ++c) pooled[c] = pooled[c] * inverse;
}

// Adds to the lanes of the sums of kSamples rows of x with kClasses rows of w, `channels` of each;
// the lanes in as many passes as they are registers.
template <int kSamples, int kClasses>
inline void add_products(const float* const* x, const float* const* w, int64_t channels,
                         float* const (&sums)[kSamples][kClasses]) {
  for (int part = 0; part < kHeadLanes; part += kFloats) {
    Floats s[kSamples][kClasses];
    for (int n = 0; n < kSamples; ++n) {
      for (int j = 0; j < kClasses; ++j) s[n][j] = load<Floats>(sums[n][j] + part);
    }
    for (int64_t c = part; c < channels; c += kHeadLanes) {
      Floats a[kSamples];
#pragma GCC unroll 4
      for (int n = 0; n < kSamples; ++n) a[n] = load<Floats>(x[n] + c);
#pragma GCC unroll 4
      for (int j = 0; j < kClasses; ++j) {
        const Floats b = load<Floats>(w[j] + c);
#pragma GCC unroll 4
        for (int n = 0; n < kSamples; ++n) s[n][j] = s[n][j] + a[n] * b;
      }
    }
    for (int n = 0; n < kSamples; ++n) {
      for (int j = 0; j < kClasses; ++j) keep(sums[n][j] + part, s[n][j]);
    }
  }
}

// Channels in pieces that leave the rows of both in L1, samples and classes in tiles
// that leave their sums in registers.
void products(const float* x, int64_t samples, const float* w, int64_t classes, int64_t channels,
              float* out, int64_t stride) {
  static_assert(kHeadLanes == 16);
  constexpr int64_t kTogether = 512;
  constexpr int kTall = 4, kWide = kFloats == 16 ? 4 : 2;
  static_assert(kMostSamples % kTall == 0 && kMostClasses % kWide == 0);
  alignas(64) float sums[kMostSamples][kMostClasses][kHeadLanes];
  memset(sums, 0, sizeof sums);
  for (int64_t first = 0; first < channels; first += kTogether) {
    const int64_t some = channels - first < kTogether ? channels - first : kTogether;
    for (int64_t n = 0; n < samples; n += kTall) {
      for (int64_t j = 0; j < classes; j += kWide) {
        // Beyond the last sample and class there is room for sums that nobody reads.
        const float *a[kTall], *b[kWide];
        float* s[kTall][kWide];
        for (int i = 0; i < kTall; ++i) a[i] = x + (n + i < samples ? n + i : n) * channels + first;
        for (int i = 0; i < kWide; ++i) b[i] = w + (j + i < classes ? j + i : j) * channels + first;
        for (int i = 0; i < kTall; ++i) {
          for (int k = 0; k < kWide; ++k) s[i][k] = sums[n + i][j + k];
        }
        add_products<kTall, kWide>(a, b, some, s);
      }
    }
  }
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t j = 0; j < classes; ++j) {
      float* lanes = sums[n][j];
      for (int lane = 0; lane < 8; ++lane) lanes[lane] += lanes[lane + 8];
      for (int lane = 0; lane < 4; ++lane) lanes[lane] += lanes[lane + 4];
      out[n * stride + j] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    }
  }
}

// The largest logit is sought in any order, since it is finite; the sums are of integers.
LossSums sum_losses(const float* z, int64_t classes, int64_t label, int bits) {
  bool finite = true;
  for (int64_t j = 0; j < classes; ++j) finite &= Float32::finite(z[j]);
  if (!finite) return {};
  Floats most = Floats{} + z[0];
  int64_t j = 0;
  for (; j + kFloats <= classes; j += kFloats) {
    const Floats v = load<Floats>(z + j);
    most = v > most ? v : most;
  }
  float largest = z[0];
  for (int lane = 0; lane < kFloats; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  for (; j < classes; ++j) largest = z[j] > largest ? z[j] : largest;
  const float label_logit = z[label];
  int64_t exponentials = 0, gaps = 0;
  int32_t better = 0;
  for (int64_t i = 0; i < classes; ++i) {
    const double gap = static_cast<double>(largest) - static_cast<double>(z[i]);
    exponentials += exp_fixed(gap);
    gaps += gap_fixed(gap, bits);
  }
  for (int64_t i = 0; i < classes; ++i) better += z[i] > label_logit;
  for (int64_t i = 0; i < label; ++i) better += z[i] == label_logit;
  return {largest, 1, exponentials, gaps, better};
}

constexpr EvaluationLoops kEvaluation = {
    {{scale<Float32, Float32>, scale<Float32, BFloat16>, scale<Float32, Float16>},
     {scale<BFloat16, Float32>, scale<BFloat16, BFloat16>, scale<BFloat16, Float16>},
     {scale<Float16, Float32>, scale<Float16, BFloat16>, scale<Float16, Float16>}},
    {widen<Float32>, widen<BFloat16>, widen<Float16>},
    {pool<Float32>, pool<BFloat16>, pool<Float16>},
    products,
    sum_losses};
