// Which weights of a piece take the mutant: drawn one by one, or looked up by gene, or the forced
// one.
#pragma once

#include <algorithm>

#include "loops.h"
#include "operators.h"

namespace deevo::cpu {

// Sets bits [begin, end) of a mask whose bits from `begin` on are 0.
inline void set_bits(uint64_t* mask, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end;) {
    const int64_t stop = std::min(end, (at / 64 + 1) * 64);
    const int64_t count = stop - at;
    const uint64_t ones = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    mask[at / 64] |= ones << (at % 64);
    at = stop;
  }
}

// The bits of the genes that cover `size` weights from flat index `flat` on.
inline void gene_bits(const Generation& g, int64_t member, int64_t flat, int64_t size,
                      uint64_t* mask) {
  const int32_t* words = g.gene_mask + member * gene_words(g.num_genes);
  const int64_t* end = g.genes + g.num_genes;
  const int64_t* next = std::upper_bound(g.genes, end, flat);  // start of the gene after this one
  for (int64_t j = 0; j < size; ++next) {
    const int64_t gene = next - g.genes - 1;
    const int64_t stop = next == end ? size : std::min(size, *next - flat);
    if (static_cast<uint32_t>(words[gene / 32]) >> (gene % 32) & 1u) set_bits(mask, j, stop);
    j = stop;
  }
}

// Fills the mask of columns [first, first + size) of a member; false if no weight takes the mutant.
inline bool crossover_mask(const Generation& g, int64_t member, int64_t first, int64_t size,
                           Mask& mask) {
  const int32_t* choice = g.choices + member * kChoiceColumns;
  const int64_t flat = g.first_weight + first;
  const int32_t threshold = choice[kThreshold];
  const int64_t forced = choice[kForced] - flat;
  const bool forces = choice[kForced] >= 0 && forced >= 0 && forced < size;
  if (g.num_genes > 0) {
    std::fill(std::begin(mask), std::end(mask), 0);
    gene_bits(g, member, flat, size, mask);
    return std::any_of(std::begin(mask), std::end(mask), [](uint64_t word) { return word != 0; });
  }
  if (threshold == 65536) {
    std::fill(std::begin(mask), std::end(mask), ~uint64_t{0});
  } else if (threshold > 0) {
    loops().draw_mask(mask, (size + 63) / 64, flat / 8, choice[kGeneration], member, g.key,
                      threshold);
  } else if (forces) {
    std::fill(std::begin(mask), std::end(mask), 0);
  }
  if (forces) set_bits(mask, forced, forced + 1);
  return threshold > 0 || forces;
}

}  // namespace deevo::cpu
