// Python bindings of the CUDA operators: a device's number, a stream's and tensors' addresses in,
// errors as exceptions out. No logic.
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "cuda/operators.h"

namespace py = pybind11;

namespace deevo {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(const char* error) {
  if (error != nullptr) throw std::invalid_argument(error);
}

cuda::Queue queue_of(const py::tuple& queue) {
  return {queue[0].cast<int>(), at<void>(queue[1].cast<Address>())};
}

cuda::Rows rows_of(const py::tuple& rows) {
  return {at<void>(rows[0].cast<Address>()), rows[1].cast<int64_t>(), rows[2].cast<int64_t>()};
}

cuda::Storage storage_of(const std::string& dtype) {
  if (dtype == "float32") return cuda::Storage::kFloat32;
  if (dtype == "bfloat16") return cuda::Storage::kBFloat16;
  if (dtype == "float16") return cuda::Storage::kFloat16;
  throw std::invalid_argument("no kernel for dtype " + dtype);
}

cuda::Generation generation(const std::string& dtype, const py::tuple& population,
                            const py::tuple& archive, int64_t columns, int64_t nonneg_start,
                            int64_t first_weight, Address choices, Address coefficients,
                            const py::tuple& genes, float lower, float upper, int64_t seed) {
  return {storage_of(dtype),
          rows_of(population),
          rows_of(archive),
          columns,
          nonneg_start,
          first_weight,
          at<int32_t>(choices),
          at<float>(coefficients),
          at<int64_t>(genes[0].cast<Address>()),
          genes[1].cast<int64_t>(),
          at<int32_t>(genes[2].cast<Address>()),
          {lower, upper},
          key_of(seed)};
}

cuda::Fold folding(const std::string& source, const std::string& target, const py::tuple& rows,
                   const py::tuple& statistics, Address constants, Address table, Address eps,
                   int64_t entries, const py::tuple& weights, const py::tuple& vectors) {
  return {storage_of(source),   storage_of(target), rows_of(rows),   rows_of(statistics),
          at<float>(constants), at<int64_t>(table), at<double>(eps), entries,
          rows_of(weights),     rows_of(vectors)};
}

cuda::Losses losses_of(Address labels, int64_t samples, int64_t classes, double smoothing,
                       const py::tuple& losses, const py::tuple& ranks) {
  return {at<int64_t>(labels), samples, classes, smoothing, rows_of(losses), rows_of(ranks)};
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_plan", [](const py::tuple& queue, Address settings, Address strategies,
                        int64_t num_strategies, Address state, int64_t state_size, Address fitness,
                        Address alive, int64_t num_members, Address generation, int64_t seed,
                        Address choices, Address parameters, Address coefficients,
                        Address gene_mask, int64_t gene_mask_words) {
    check(cuda::plan(queue_of(queue), {{at<double>(settings), at<double>(strategies),
                                        num_strategies, state_size, num_members, key_of(seed)},
                                       at<double>(state),
                                       at<double>(fitness),
                                       at<uint8_t>(alive),
                                       at<int64_t>(generation),
                                       at<int32_t>(choices),
                                       at<double>(parameters),
                                       at<float>(coefficients),
                                       at<int32_t>(gene_mask),
                                       gene_mask_words}));
  });

  m.def("cuda_tell", [](const py::tuple& queue, Address settings, Address strategies,
                        int64_t num_strategies, Address trial_fitness, Address choices,
                        Address parameters, int64_t num_members, int64_t seed, Address state,
                        int64_t state_size, Address fitness, Address alive, Address generation,
                        Address accepted, Address archive_slot) {
    check(cuda::tell(queue_of(queue), {{at<double>(settings), at<double>(strategies),
                                        num_strategies, state_size, num_members, key_of(seed)},
                                       at<double>(trial_fitness),
                                       at<int32_t>(choices),
                                       at<double>(parameters),
                                       at<double>(state),
                                       at<double>(fitness),
                                       at<uint8_t>(alive),
                                       at<int64_t>(generation),
                                       at<uint8_t>(accepted),
                                       at<int32_t>(archive_slot)}));
  });

  m.def("cuda_trials",
        [](const py::tuple& queue, const std::string& dtype, const py::tuple& population,
           const py::tuple& archive, int64_t columns, int64_t nonneg_start, int64_t first_weight,
           Address choices, Address coefficients, const py::tuple& genes, float lower, float upper,
           int64_t seed, Address members, int64_t num_trials, const py::tuple& out) {
          const auto g = generation(dtype, population, archive, columns, nonneg_start, first_weight,
                                    choices, coefficients, genes, lower, upper, seed);
          check(cuda::trials(queue_of(queue), g, at<int64_t>(members), num_trials, rows_of(out)));
        });

  m.def("cuda_commit",
        [](const py::tuple& queue, const std::string& dtype, const py::tuple& population,
           const py::tuple& archive, int64_t columns, int64_t nonneg_start, int64_t first_weight,
           Address choices, Address coefficients, const py::tuple& genes, float lower, float upper,
           int64_t seed, Address accepted, Address archive_slot) {
          const auto g = generation(dtype, population, archive, columns, nonneg_start, first_weight,
                                    choices, coefficients, genes, lower, upper, seed);
          check(cuda::commit(queue_of(queue), g, at<uint8_t>(accepted), at<int32_t>(archive_slot)));
        });

  m.def("cuda_fold",
        [](const py::tuple& queue, const std::string& source, const std::string& target,
           const py::tuple& rows, const py::tuple& statistics, Address constants, Address table,
           Address eps, int64_t entries, const py::tuple& weights, const py::tuple& vectors) {
          check(cuda::fold(queue_of(queue), folding(source, target, rows, statistics, constants,
                                                    table, eps, entries, weights, vectors)));
        });

  m.def("cuda_head", [](const py::tuple& queue, const std::string& dtype, const py::tuple& features,
                        const py::tuple& weight, const py::tuple& bias, int64_t positions,
                        int64_t channels, Address labels, int64_t samples, int64_t classes,
                        double smoothing, const py::tuple& losses, const py::tuple& ranks) {
    check(cuda::head(queue_of(queue), storage_of(dtype), rows_of(features), rows_of(weight),
                     rows_of(bias), positions, channels,
                     losses_of(labels, samples, classes, smoothing, losses, ranks)));
  });

  m.def("cuda_loss_and_rank",
        [](const py::tuple& queue, const std::string& dtype, const py::tuple& logits,
           Address labels, int64_t samples, int64_t classes, double smoothing,
           const py::tuple& losses, const py::tuple& ranks) {
          check(cuda::loss_and_rank(queue_of(queue), storage_of(dtype), rows_of(logits),
                                    losses_of(labels, samples, classes, smoothing, losses, ranks)));
        });
}

}  // namespace deevo
