// ragvl._C: every compiled operation, and the only file that knows Python. Tensors arrive as
// addresses, checked by ragvl/ops/<op>.py; nothing here links against libtorch, so one build serves
// every torch. An operation is a function a device, which takes the fields of its params struct by
// name.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bfloat16_linear.h"
#include "diffusion_noise.h"
#include "int8_linear.h"
#include "isa.h"
#include "prefix_attention.h"
#include "prefix_write.h"
#include "relevance_head.h"
#include "residual_rms_norm.h"
#include "rotary_embedding.h"
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

// read(value, to): a field's value from Python.
template <class T>
void read(py::handle value, T& to) {
  to = value.cast<T>();
}

template <class T>
void read(py::handle value, T*& to) {
  to = reinterpret_cast<T*>(value.cast<Address>());
}

// (address, stride of each dimension but the last)
template <int N>
void read(py::handle value, View<N>& to) {
  const auto fields = value.cast<py::tuple>();
  if (fields.size() != N + 1) throw py::type_error("a view needs an address and its strides");
  to.data = reinterpret_cast<void*>(fields[0].cast<Address>());
  for (int i = 0; i < N; ++i) to.stride[i] = fields[i + 1].cast<int64_t>();
}

void read(py::handle value, DType& to) {
  const auto name = value.cast<std::string>();
  if (name == "float32") {
    to = DType::float32;
  } else if (name == "bfloat16") {
    to = DType::bfloat16;
  } else if (name == "float16") {
    to = DType::float16;
  } else {
    throw std::invalid_argument("dtype " + name + ": expected float32, bfloat16 or float16");
  }
}

void read(py::handle value, Norm& to) {
  const auto name = value.cast<std::string>();
  if (name == "none") {
    to = Norm::none;
  } else if (name == "rms") {
    to = Norm::rms;
  } else if (name == "layer") {
    to = Norm::layer;
  } else {
    throw std::invalid_argument("norm " + name + ": expected none, rms or layer");
  }
}

// All fields and no others; KeyError or TypeError otherwise.
template <class Params>
Params params_of(const py::kwargs& fields) {
  Params params;
  size_t count = 0;
  Params::for_each_field([&](const char* name, auto member) {
    read(fields[name], params.*member);
    ++count;
  });
  if (count != fields.size()) throw py::type_error("a field that the operation does not have");
  return params;
}

// `choose()` is the kernel of the instruction set to use.
template <class Params, class Choose>
void bind_cpu(py::module_& m, const char* name, Choose choose) {
  m.def(name, [choose](int threads, const py::kwargs& fields) {
    const auto kernel = choose();
    const auto params = params_of<Params>(fields);
    py::gil_scoped_release unlocked;
    kernel(params, threads);
  });
}

#ifndef RAGVL_WITHOUT_CUDA
template <class Params>
void bind_cuda(py::module_& m, const char* name, const char* (*launch)(const Params&, void*)) {
  m.def(name, [launch](Address stream, const py::kwargs& fields) {
    const auto params = params_of<Params>(fields);
    py::gil_scoped_release unlocked;
    const char* problem = launch(params, reinterpret_cast<void*>(stream));
    if (problem) throw std::runtime_error(problem);
  });
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("cuda_architectures") = RAGVL_CUDA_ARCHITECTURES;
  m.def("cpu_isa", [] { return isa_name(chosen_isa()); });
  m.def("cpu_isas", [] {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.push_back(isa_name(isa));
    return names;
  });

  bind_cpu<BFloat16LinearParams>(m, "bfloat16_linear_cpu",
                                 [] { return RAGVL_CPU_KERNEL(bfloat16_linear); });
  bind_cpu<DiffusionNoiseParams>(m, "diffusion_noise_cpu",
                                 [] { return RAGVL_CPU_KERNEL(diffusion_noise); });
  bind_cpu<Int8LinearParams>(m, "int8_linear_cpu", [] { return RAGVL_CPU_KERNEL(int8_linear); });
  bind_cpu<PrefixAttentionParams>(m, "prefix_attention_cpu",
                                  [] { return RAGVL_CPU_KERNEL(prefix_attention); });
  bind_cpu<PrefixWriteParams>(m, "prefix_write_cpu", [] { return RAGVL_CPU_KERNEL(prefix_write); });
  bind_cpu<RelevanceHeadParams>(m, "relevance_head_cpu",
                                [] { return RAGVL_CPU_KERNEL(relevance_head); });
  bind_cpu<ResidualRmsNormParams>(m, "residual_rms_norm_cpu",
                                  [] { return RAGVL_CPU_KERNEL(residual_rms_norm); });
  bind_cpu<RotaryEmbeddingParams>(m, "rotary_embedding_cpu",
                                  [] { return RAGVL_CPU_KERNEL(rotary_embedding); });
#ifndef RAGVL_WITHOUT_CUDA
  m.def("cuda_problem", [] {
    const char* problem = cuda_problem();
    return problem ? py::object(py::str(problem)) : py::object(py::none());
  });
  bind_cuda(m, "diffusion_noise_cuda", diffusion_noise_cuda);
  bind_cuda(m, "relevance_head_cuda", relevance_head_cuda);
#endif
}
