// ragvl._C: every compiled operation, and the only file that knows Python. Tensors arrive as
// addresses, checked by ragvl/ops/<op>.py; nothing here links against libtorch, so one build serves
// every torch. An operation is bound as its params struct, built by name, and one function a
// device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "diffusion_noise.h"
#include "isa.h"
#include "prefix_attention.h"
#include "relevance_head.h"
#ifdef RAGVL_CUDA_ARCHITECTURES
#include "cuda_status.h"
#else
#define RAGVL_CUDA_ARCHITECTURES ""
#define RAGVL_WITHOUT_CUDA
#endif

namespace py = pybind11;
using namespace ragvl;

namespace {

using Address = uintptr_t;  // tensor.data_ptr(), or 0 for an absent tensor

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  throw std::invalid_argument("dtype " + name + ": expected float32, bfloat16 or float16");
}

PageFormat page_format_of(const std::string& name) {
  if (name == "plain") return PageFormat::plain;
  if (name == "int8") return PageFormat::int8;
  throw std::invalid_argument("page_format " + name + ": expected plain or int8");
}

Norm norm_of(const std::string& name) {
  if (name == "none") return Norm::none;
  if (name == "rms") return Norm::rms;
  if (name == "layer") return Norm::layer;
  throw std::invalid_argument("norm " + name + ": expected none, rms or layer");
}

void throw_if(const char* error) {
  if (error) throw std::runtime_error(error);
}

void bind_relevance_head(py::module_& m) {
  py::class_<RelevanceHeadParams>(m, "RelevanceHeadParams")
      .def(py::init([](Address hidden, int64_t row_stride, Address last_index, Address norm_weight,
                       Address norm_bias, Address head_rows, Address head_bias, Address logits,
                       Address relevance, int64_t rows, int64_t batch, int64_t dim,
                       int64_t num_head_rows, int64_t num_yes, float eps, float softcap,
                       const std::string& dtype, const std::string& norm) {
             return RelevanceHeadParams{pointer<void>(hidden),
                                        row_stride,
                                        pointer<int64_t>(last_index),
                                        pointer<float>(norm_weight),
                                        pointer<float>(norm_bias),
                                        pointer<float>(head_rows),
                                        pointer<float>(head_bias),
                                        pointer<float>(logits),
                                        pointer<float>(relevance),
                                        rows,
                                        batch,
                                        dim,
                                        num_head_rows,
                                        num_yes,
                                        eps,
                                        softcap,
                                        dtype_of(dtype),
                                        norm_of(norm)};
           }),
           py::kw_only(), py::arg("hidden"), py::arg("row_stride"), py::arg("last_index"),
           py::arg("norm_weight"), py::arg("norm_bias"), py::arg("head_rows"), py::arg("head_bias"),
           py::arg("logits"), py::arg("relevance"), py::arg("rows"), py::arg("batch"),
           py::arg("dim"), py::arg("num_head_rows"), py::arg("num_yes"), py::arg("eps"),
           py::arg("softcap"), py::arg("dtype"), py::arg("norm"));

  m.def("relevance_head_cpu", [](const RelevanceHeadParams& params, int threads) {
    const auto kernel = RAGVL_CPU_KERNEL(relevance_head);
    py::gil_scoped_release unlocked;
    kernel(params, threads);
  });
#ifndef RAGVL_WITHOUT_CUDA
  m.def("relevance_head_cuda", [](const RelevanceHeadParams& params, Address stream) {
    py::gil_scoped_release unlocked;
    throw_if(relevance_head_cuda(params, pointer<void>(stream)));
  });
#endif
}

void bind_diffusion_noise(py::module_& m) {
  py::class_<DiffusionNoiseParams>(m, "DiffusionNoiseParams")
      .def(py::init([](Address x, Address rows, Address noise, Address signal, Address scale,
                       Address out, int64_t size, int64_t dim, int64_t item_size, uint64_t seed,
                       const std::string& dtype) {
             return DiffusionNoiseParams{pointer<void>(x),
                                         pointer<bool>(rows),
                                         pointer<void>(noise),
                                         pointer<float>(signal),
                                         pointer<float>(scale),
                                         pointer<void>(out),
                                         size,
                                         dim,
                                         item_size,
                                         seed,
                                         dtype_of(dtype)};
           }),
           py::kw_only(), py::arg("x"), py::arg("rows"), py::arg("noise"), py::arg("signal"),
           py::arg("scale"), py::arg("out"), py::arg("size"), py::arg("dim"), py::arg("item_size"),
           py::arg("seed"), py::arg("dtype"));

  m.def("diffusion_noise_cpu", [](const DiffusionNoiseParams& params, int threads) {
    const auto kernel = RAGVL_CPU_KERNEL(diffusion_noise);
    py::gil_scoped_release unlocked;
    kernel(params, threads);
  });
#ifndef RAGVL_WITHOUT_CUDA
  m.def("diffusion_noise_cuda", [](const DiffusionNoiseParams& params, Address stream) {
    py::gil_scoped_release unlocked;
    throw_if(diffusion_noise_cuda(params, pointer<void>(stream)));
  });
#endif
}

// (address, elements from row to row, elements from head to head)
using View = std::tuple<Address, int64_t, int64_t>;

HeadsView heads_view(const View& view) {
  return {pointer<void>(std::get<0>(view)), std::get<1>(view), std::get<2>(view)};
}

void bind_prefix_attention(py::module_& m) {
  py::class_<PrefixAttentionParams>(m, "PrefixAttentionParams")
      .def(py::init([](const View& q, const View& k, const View& v, Address key_pages,
                       Address value_pages, Address key_scales, Address value_scales,
                       Address page_table, Address prefix_lengths, Address suffix_starts,
                       Address suffix_lengths, Address out, int64_t batch, int64_t heads,
                       int64_t kv_heads, int64_t dim, int64_t page_size, int64_t table_width,
                       int64_t sliding_window, float scale, bool last_only,
                       const std::string& dtype, const std::string& page_format) {
             return PrefixAttentionParams{heads_view(q),
                                          heads_view(k),
                                          heads_view(v),
                                          pointer<void>(key_pages),
                                          pointer<void>(value_pages),
                                          pointer<float>(key_scales),
                                          pointer<float>(value_scales),
                                          pointer<int32_t>(page_table),
                                          pointer<int32_t>(prefix_lengths),
                                          pointer<int32_t>(suffix_starts),
                                          pointer<int32_t>(suffix_lengths),
                                          pointer<void>(out),
                                          batch,
                                          heads,
                                          kv_heads,
                                          dim,
                                          page_size,
                                          table_width,
                                          sliding_window,
                                          scale,
                                          last_only,
                                          dtype_of(dtype),
                                          page_format_of(page_format)};
           }),
           py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("key_pages"),
           py::arg("value_pages"), py::arg("key_scales"), py::arg("value_scales"),
           py::arg("page_table"), py::arg("prefix_lengths"), py::arg("suffix_starts"),
           py::arg("suffix_lengths"), py::arg("out"), py::arg("batch"), py::arg("heads"),
           py::arg("kv_heads"), py::arg("dim"), py::arg("page_size"), py::arg("table_width"),
           py::arg("sliding_window"), py::arg("scale"), py::arg("last_only"), py::arg("dtype"),
           py::arg("page_format"));

  m.def("prefix_attention_cpu", [](const PrefixAttentionParams& params, int threads) {
    const auto kernel = RAGVL_CPU_KERNEL(prefix_attention);
    py::gil_scoped_release unlocked;
    kernel(params, threads);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("cuda_architectures") = RAGVL_CUDA_ARCHITECTURES;
#ifndef RAGVL_WITHOUT_CUDA
  m.def("cuda_problem", [] {
    const char* problem = cuda_problem();
    return problem ? py::object(py::str(problem)) : py::object(py::none());
  });
#endif
  m.def("cpu_isa", [] { return isa_name(chosen_isa()); });
  m.def("cpu_isas", [] {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.push_back(isa_name(isa));
    return names;
  });
  bind_diffusion_noise(m);
  bind_prefix_attention(m);
  bind_relevance_head(m);
}
