// Which instruction set the CPU kernels use. CMake compiles csrc/<op>.cpp once for each.
#pragma once

#include <vector>

namespace ragvl {

enum class Isa { baseline, avx2, avx512, avx512_vnni, avx512_bf16, amx };

const char* isa_name(Isa isa);

// What both this build and this CPU have, slowest first.
std::vector<Isa> available_isas();

// The one that $RAGVL_CPU_ISA names, else the fastest available; std::invalid_argument where the
// variable names one that is not available.
Isa chosen_isa();

}  // namespace ragvl

#define RAGVL_DECLARE_IN(isa, op, Params) \
  namespace isa {                         \
  void op(const Params&, int threads);    \
  }

// Declares `void op(const Params&, int threads)` of every instruction set.
#ifdef RAGVL_X86
#define RAGVL_DECLARE_CPU_KERNEL(op, Params) \
  RAGVL_DECLARE_IN(baseline, op, Params)     \
  RAGVL_DECLARE_IN(avx2, op, Params)         \
  RAGVL_DECLARE_IN(avx512, op, Params)       \
  RAGVL_DECLARE_IN(avx512_vnni, op, Params)  \
  RAGVL_DECLARE_IN(avx512_bf16, op, Params)  \
  RAGVL_DECLARE_IN(amx, op, Params)
#define RAGVL_CPU_KERNEL(op)                                               \
  (::ragvl::chosen_isa() == ::ragvl::Isa::amx           ? &amx::op         \
   : ::ragvl::chosen_isa() == ::ragvl::Isa::avx512_bf16 ? &avx512_bf16::op \
   : ::ragvl::chosen_isa() == ::ragvl::Isa::avx512_vnni ? &avx512_vnni::op \
   : ::ragvl::chosen_isa() == ::ragvl::Isa::avx512      ? &avx512::op      \
   : ::ragvl::chosen_isa() == ::ragvl::Isa::avx2        ? &avx2::op        \
                                                        : &baseline::op)
#else
#define RAGVL_DECLARE_CPU_KERNEL(op, Params) RAGVL_DECLARE_IN(baseline, op, Params)
#define RAGVL_CPU_KERNEL(op) (&baseline::op)
#endif
