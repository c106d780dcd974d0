// Python bindings: addresses and sizes in, errors as exceptions out. No logic; shapes, dtypes and
// overlaps are checked in deevo_ext/ops.
#include "bindings.h"

#include <stdexcept>
#include <string>

#include "cpu/loops.h"
#include "cpu/operators.h"
#include "deevo/exact_math.h"
#include "deevo/philox.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(const char* error) {
  if (error != nullptr) throw std::invalid_argument(error);
}

deevo::cpu::Storage storage_of(const std::string& dtype) {
  if (dtype == "float32") return deevo::cpu::Storage::kFloat32;
  if (dtype == "bfloat16") return deevo::cpu::Storage::kBFloat16;
  if (dtype == "float16") return deevo::cpu::Storage::kFloat16;
  throw std::invalid_argument("no kernel for populations of dtype " + dtype);
}

struct Matrix {
  Address data;
  int64_t count;
  int64_t stride;

  deevo::cpu::Rows rows() const { return {at<void>(data), count, stride}; }
};

Matrix matrix(const py::tuple& t) {
  return {t[0].cast<Address>(), t[1].cast<int64_t>(), t[2].cast<int64_t>()};
}

deevo::cpu::Generation generation(const std::string& dtype, const py::tuple& population,
                                  const py::tuple& archive, int64_t columns, int64_t nonneg_start,
                                  int64_t first_weight, Address choices, Address coefficients,
                                  const py::tuple& genes, float lower, float upper, int64_t seed,
                                  int64_t threads) {
  return {storage_of(dtype),
          matrix(population).rows(),
          matrix(archive).rows(),
          columns,
          nonneg_start,
          first_weight,
          at<int32_t>(choices),
          at<float>(coefficients),
          at<int64_t>(genes[0].cast<Address>()),
          genes[1].cast<int64_t>(),
          at<int32_t>(genes[2].cast<Address>()),
          {lower, upper},
          deevo::key_of(seed),
          threads};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled operators of deevo_ext; use them through torch.ops.deevo.";
  deevo::bind_inference(m);
#if defined(DEEVO_WITH_CUDA)
  deevo::bind_cuda(m);
#endif

  m.def("plan",
        [](Address settings, Address strategies, int64_t num_strategies, Address state,
           Address fitness, Address alive, int64_t num_members, int64_t generation, int64_t seed,
           Address choices, Address parameters, Address coefficients, Address gene_mask) {
          check(deevo::cpu::plan(at<double>(settings), at<double>(strategies), num_strategies,
                                 at<double>(state), at<double>(fitness), at<uint8_t>(alive),
                                 num_members, generation, deevo::key_of(seed),
                                 {at<int32_t>(choices), at<double>(parameters),
                                  at<float>(coefficients), at<int32_t>(gene_mask)}));
        });

  m.def("tell", [](Address settings, Address strategies, int64_t num_strategies,
                   Address trial_fitness, Address choices, Address parameters, int64_t num_members,
                   int64_t seed, Address state, Address fitness, Address alive, Address generation,
                   Address accepted, Address archive_slot) {
    check(deevo::cpu::tell(
        {at<double>(settings), at<double>(strategies), num_strategies, at<double>(trial_fitness),
         at<int32_t>(choices), at<double>(parameters), num_members, deevo::key_of(seed)},
        at<double>(state), at<double>(fitness), at<uint8_t>(alive), at<int64_t>(generation),
        at<uint8_t>(accepted), at<int32_t>(archive_slot)));
  });

  m.def("trials",
        [](const std::string& dtype, const py::tuple& population, const py::tuple& archive,
           int64_t columns, int64_t nonneg_start, int64_t first_weight, Address choices,
           Address coefficients, const py::tuple& genes, float lower, float upper, int64_t seed,
           int64_t threads, Address members, int64_t num_trials, const py::tuple& out) {
          const auto g = generation(dtype, population, archive, columns, nonneg_start, first_weight,
                                    choices, coefficients, genes, lower, upper, seed, threads);
          const deevo::cpu::Rows rows = matrix(out).rows();
          const char* error;
          {
            const py::gil_scoped_release release;
            error = deevo::cpu::trials(g, at<int64_t>(members), num_trials, rows);
          }
          check(error);
        });

  m.def("commit",
        [](const std::string& dtype, const py::tuple& population, const py::tuple& archive,
           int64_t columns, int64_t nonneg_start, int64_t first_weight, Address choices,
           Address coefficients, const py::tuple& genes, float lower, float upper, int64_t seed,
           int64_t threads, Address accepted, Address archive_slot) {
          const auto g = generation(dtype, population, archive, columns, nonneg_start, first_weight,
                                    choices, coefficients, genes, lower, upper, seed, threads);
          const char* error;
          {
            const py::gil_scoped_release release;
            error = deevo::cpu::commit(g, at<uint8_t>(accepted), at<int32_t>(archive_slot));
          }
          check(error);
        });

  m.def("philox4x32", [](int rounds, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                         uint32_t k0, uint32_t k1) {
    if (rounds != deevo::kMaskRounds && rounds != deevo::kRounds) {
      throw std::invalid_argument("rounds must be 7 or 10");
    }
    const deevo::Words out = rounds == deevo::kRounds
                                 ? deevo::philox4x32<deevo::kRounds>(c0, c1, c2, c3, {k0, k1})
                                 : deevo::philox4x32<deevo::kMaskRounds>(c0, c1, c2, c3, {k0, k1});
    return py::make_tuple(out.w[0], out.w[1], out.w[2], out.w[3]);
  });
  m.def("instruction_set", [] { return deevo::cpu::loops().name; });
  m.def("use_instruction_set",
        [](const std::string& name) { return deevo::cpu::use_loops(name.c_str()); });
  m.def("exact_log", &deevo::exact_log);
  m.def("sin2pi", &deevo::sin2pi);
  m.def("normal_quantile", &deevo::normal_quantile);
  m.def("cauchy_quantile", &deevo::cauchy_quantile);
  m.def(
      "table_sizes",
      [] {
        const deevo::StateLayout layout(5, 3, 10, 7);
        return py::make_tuple(
            static_cast<int>(deevo::kNumSettings), static_cast<int>(deevo::kStrategyColumns),
            static_cast<int>(deevo::kChoiceColumns), static_cast<int>(deevo::kParameterColumns),
            deevo::kMaxTerms, static_cast<int>(deevo::kNumTermCodes), layout.size);
      },
      "Sizes of the shared tables; the last is a state of H=5, K=3 and windows of 10 and 7.");
}
