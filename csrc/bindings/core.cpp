// sparse_kernels._core: the libtorch-free core and the host harness for pytest. Never shipped.
// Memory comes as addresses (Tensor.data_ptr()), so that neither torch nor numpy is needed here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/normal.h"
#include "../core/philox.h"
#include "../core/simd_philox.h"
#include "harness_compaction.h"
#include "harness_groups.h"
#include "harness_ops.h"
#include "harness_ranked.h"

namespace py = pybind11;

namespace {

using namespace sk;
using namespace sk::harness;
using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// x: lam, lower, delta, decay, leak, fine_scale
Readout<float> readout_of(const std::array<float, 6>& x) {
  return {x[0], x[1], x[2], x[3], x[4], x[5]};
}

std::array<uint32_t, 4> philox_words(uint64_t block, uint32_t uid, uint32_t direction, uint64_t key,
                                     int rounds) {
  const RoundKeys keys = round_keys(key);
  const Words w = rounds == 7 ? philox<7>(block, uid, direction, keys)
                              : philox<10>(block, uid, direction, keys);
  return {w.x[0], w.x[1], w.x[2], w.x[3]};
}

// Every way to draw many calls that this processor can run, to words[way][4 calls]; their number.
template <int kRounds>
int words_by_way(uint64_t block, uint32_t uid, uint32_t direction, uint64_t key, int calls,
                 Address words) {
  std::vector<PhiloxPairs> ways{philox_pairs_by_call<kRounds>, pick_philox_pairs<kRounds>()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) ways.push_back(philox_pairs_256<kRounds>);
  if (__builtin_cpu_supports("avx512f")) ways.push_back(philox_pairs_512<kRounds>);
#endif
  uint32_t* out = at<uint32_t>(words);
  for (const PhiloxPairs pairs : ways) {
    std::vector<uint32_t> a(size_t(2 * calls)), b(a.size());
    pairs(round_keys(key), block, uid, direction, calls, a.data(), b.data());
    for (size_t j = 0; j < a.size(); ++j) {
      *out++ = a[j];
      *out++ = b[j];
    }
  }
  return int(ways.size());
}

void normals(Address a, Address b, int64_t n, Address even, Address odd) {
  for (int64_t i = 0; i < n; ++i) {
    const NormalPair pair = box_muller(at<uint32_t>(a)[i], at<uint32_t>(b)[i]);
    at<float>(even)[i] = pair.even;
    at<float>(odd)[i] = pair.odd;
  }
}

template <class T>
void widen(Address in, int64_t n, Address out) {
  for (int64_t i = 0; i < n; ++i) at<float>(out)[i] = load(at<T>(in)[i]);
}
template <class T>
void narrow(Address in, int64_t n, Address out) {
  for (int64_t i = 0; i < n; ++i) at<T>(out)[i] = store<T>(at<float>(in)[i]);
}

Segment segment(int64_t numel, const std::vector<Address>& data, Address mask, Address backup,
                Address ranks, int64_t capacity, uint32_t uid, Address input, int64_t input_numel,
                int64_t first, int64_t cols, int64_t height, int64_t width) {
  Segment s;
  s.numel = numel;
  if (data.size() > kMaxStreams) throw std::invalid_argument("too many streams");
  for (size_t i = 0; i < data.size(); ++i) s.data[i] = at<void>(data[i]);
  s.mask = at<uint32_t>(mask);
  s.backup = at<void>(backup);
  s.ranks = at<int64_t>(ranks);
  s.capacity = capacity;
  s.uid = uid;
  s.input = at<void>(input);
  s.input_numel = input_numel;
  s.first = first;
  s.cols = cols;
  s.height = height;
  s.width = width;
  return s;
}

Directions<float> directions(Address key, Address coef, Address words, int64_t first, int q,
                             int rounds, bool signs, bool fast) {
  return {at<int64_t>(key), at<float>(coef), at<int64_t>(words), first, q, rounds, signs, fast};
}

void bind_core(py::module_& m) {
  m.attr("chunk_size") = kChunkSize;
  m.attr("rank_tile") = kRankTile;
  m.attr("parameter_bytes") = phases::kParameterBytes;
  m.def("philox", philox_words, py::arg("block"), py::arg("uid"), py::arg("direction"),
        py::arg("key"), py::arg("rounds"));
  m.attr("philox_group") = kPhiloxGroup;
  m.attr("philox_ways") = 4;  // at most
  m.def("philox_7_by_way", words_by_way<7>);
  m.def("philox_10_by_way", words_by_way<10>);
  m.def("box_muller", normals, "n pairs: uint32 a, b to float even, odd");
  m.def("f16_to_float", widen<f16>);
  m.def("bf16_to_float", widen<bf16>);
  m.def("float_to_f16", narrow<f16>);
  m.def("float_to_bf16", narrow<bf16>);
  m.def("shrink", [](float dual, float lower, float lam) { return shrink(dual, lower, lam); });
  m.def("first_chunks", [](const std::vector<int64_t>& n) { return ChunkPlan(n).first_chunk; });
  m.def("find_tensor", [](const std::vector<int64_t>& first_chunk, int64_t chunk) {
    return find_tensor(first_chunk.data(), int(first_chunk.size()) - 1, chunk);
  });
  m.def("direction_pair", [](int64_t number) {
    const phases::DirectionPair pair = phases::direction_pair(number);
    return std::pair(pair.j, pair.k);
  });
}

void bind_types(py::module_& m) {
  py::class_<Segment>(m, "Segment")
      .def(py::init(&segment), py::arg("numel"), py::arg("data"), py::kw_only(),
           py::arg("mask") = 0, py::arg("backup") = 0, py::arg("ranks") = 0,
           py::arg("capacity") = 0, py::arg("uid") = 0, py::arg("input") = 0,
           py::arg("input_numel") = 0, py::arg("first") = 0, py::arg("cols") = 0,
           py::arg("height") = 0, py::arg("width") = 0);
  py::class_<Run>(m, "Run").def(
      py::init([](std::vector<Segment> segments, bool backed, std::vector<int64_t> chunks) {
        return Run{std::move(segments), backed, std::move(chunks)};
      }),
      py::arg("segments"), py::kw_only(), py::arg("backed") = true,
      py::arg("chunks") = std::vector<int64_t>{});
  py::class_<Directions<float>>(m, "Directions")
      .def(py::init(&directions), py::kw_only(), py::arg("key"), py::arg("coef"),
           py::arg("directions") = 0, py::arg("first_direction") = 0, py::arg("q"),
           py::arg("rounds") = 10, py::arg("signs") = false, py::arg("fast") = false);
  py::class_<Range>(m, "Range")
      .def_readonly("begin", &Range::begin)
      .def_readonly("end", &Range::end)
      .def_readonly("loaded", &Range::loaded)
      .def_readonly("stored", &Range::stored);
  py::class_<Report>(m, "Report")
      .def_readonly("launches", &Report::launches)
      .def_readonly("blocks", &Report::blocks)
      .def_readonly("ranges", &Report::ranges);
  py::class_<Sum>(m, "Sum")
      .def_readonly("total", &Sum::total)
      .def_readonly("root", &Sum::root)
      .def_readonly("report", &Sum::report);
}

void bind_ranked(py::module_& m) {
  py::class_<Selection>(m, "Selection")
      .def(py::init([](const std::string& dtype, const std::string& kind, Address key,
                       Address pools, bool single, bool inverted) {
             return Selection{dtype, kind, at<int64_t>(key), at<int64_t>(pools), single, inverted};
           }),
           py::arg("dtype"), py::kw_only(), py::arg("kind") = "value", py::arg("key") = 0,
           py::arg("pools") = 0, py::arg("single") = true, py::arg("inverted") = false);
  m.def("mask_count", mask_count);
  m.def("mask_apply", mask_apply);
  m.def("mask_nm", mask_nm);
  m.def("live_mask", [](const Run& run, double lam, bool nonnegative) {
    return live_mask(run, lam, nonnegative);
  });
  m.def("mask_index", mask_index);
  m.def("move_entries",
        [](const Run& run, int bytes, bool scatter) { return move_entries(run, bytes, scatter); });
  m.def("topk_histogram",
        [](const Run& run, const Selection& selection, int shift, int bits, Address counts) {
          return topk_histogram(run, selection, shift, bits, at<int64_t>(counts));
        });
  m.def("topk_write",
        [](const Run& run, const Selection& selection, bool accumulate, Address ties) {
          return topk_write(run, selection, accumulate, at<int64_t>(ties));
        });
  m.def("topk_ties", [](const Run& run, const Selection& selection, Address counts, Address before,
                        Address take) {
    return topk_ties(run, selection,
                     TieCounts{at<int64_t>(counts), at<int64_t>(before), at<int64_t>(take)});
  });
}

void bind_harness(py::module_& m) {
  m.def("masked_perturb", [](const Run& run, const std::string& dtype, bool adaptive, Address norm,
                             float rho, float eta, float eps, Address device_rho) {
    return masked_perturb(run, dtype, adaptive, at<float>(norm), rho, eta, eps,
                          at<float>(device_rho));
  });
  m.def("restore", restore);
  m.def("restore_sgd", [](const Run& run, const std::string& dtype, bool buffers, Address skip,
                          Address inv_scale, bool maximize, const std::array<float, 4>& x,
                          bool nesterov, bool first, Address device_lr) {
    const Gates<float> gates{at<float>(skip), at<float>(inv_scale), maximize};
    return restore_sgd(run, dtype, buffers, gates, x, nesterov, first, at<float>(device_lr));
  });
  m.def("restore_adamw",
        [](const Run& run, const std::string& dtype, Address skip, Address inv_scale, bool maximize,
           Address step_sizes, Address bias2_sqrts, const std::array<float, 6>& x,
           Address device_shrink) {
          const Gates<float> gates{at<float>(skip), at<float>(inv_scale), maximize};
          return restore_adamw(run, dtype, gates, at<float>(step_sizes), at<float>(bias2_sqrts), x,
                               at<float>(device_shrink));
        });
  m.def("norm", norm);
  m.def("mask_pack", mask_pack);
  m.def("mask_unpack", mask_unpack);
  m.def("linbreg_step",
        [](const Run& run, const std::string& dtype, bool dual, bool readout, bool momentum,
           const std::array<float, 6>& readout_scalars, const std::array<float, 4>& x,
           bool nesterov, Address live, Address scalars) {
          const LinBregScalars own{readout_of(readout_scalars), x[0], x[1], x[2], x[3], nesterov,
                                   at<float>(scalars)};
          return linbreg(run, dtype, dual, readout, momentum, own, at<int64_t>(live));
        });
  m.def("adabreg_step", [](const Run& run, const std::string& dtype, bool dual, bool readout,
                           bool counts, const std::array<float, 6>& readout_scalars,
                           const std::array<float, 7>& x, Address step_sizes, Address bias2_sqrts,
                           int32_t last_row, Address live, Address scalars) {
    const AdaBregScalars own{readout_of(readout_scalars),
                             x[0],
                             x[1],
                             x[2],
                             x[3],
                             x[4],
                             x[5],
                             x[6],
                             at<float>(step_sizes),
                             at<float>(bias2_sqrts),
                             last_row,
                             at<float>(scalars)};
    return adabreg(run, dtype, dual, readout, counts, own, at<int64_t>(live));
  });
  m.def("prox_group", [](const Run& run, const std::string& dtype, Address thresholds, double lam,
                         double delta, bool nonnegative, const std::array<Address, 3>& out) {
    const ProxResults results{at<int64_t>(out[0]), at<int64_t>(out[1]), at<double>(out[2])};
    return prox_group(run, dtype, at<float>(thresholds), lam, delta, nonnegative, results);
  });
  m.def("zo_combine",
        [](const Run& run, const std::string& dtype, const std::string& source,
           const Directions<float>& stream, Address alpha, Address gamma, bool sumsq) {
          return zo_combine(run, dtype, source, stream, at<float>(alpha), at<float>(gamma), sumsq);
        });
  m.def("zo_norm2", zo_norm2);
  m.def("zo_gram", [](const Run& run, const Directions<float>& stream, Address out) {
    return zo_gram(run, stream, at<double>(out));
  });
  m.def("zo_key", [](Address key, Address counter, Address seed, uint32_t stream) {
    zo_key(at<int64_t>(key), at<int64_t>(counter), at<int64_t>(seed), stream);
  });
  m.def("shifted_signs", [](const std::array<uint32_t, 8>& x, uint32_t offset) {
    const Words w = shifted_signs({x[0], x[1], x[2], x[3]}, {x[4], x[5], x[6], x[7]}, offset);
    return std::array<uint32_t, 4>{w.x[0], w.x[1], w.x[2], w.x[3]};
  });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Scalar math of csrc/core, and the CUDA kernels' programs on host memory.";
  bind_core(m);
  bind_types(m);
  bind_harness(m);
  bind_ranked(m);
}
