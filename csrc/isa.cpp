#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace ragvl {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512_vnni:
      return "avx512_vnni";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas{Isa::baseline};
#ifdef RAGVL_X86
  __builtin_cpu_init();
  // The features must match the compiler flags in CMakeLists.txt.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    isas.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      isas.push_back(Isa::avx512);
      if (__builtin_cpu_supports("avx512vnni")) {
        isas.push_back(Isa::avx512_vnni);
        if (__builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::avx512_bf16);
      }
    }
  }
#endif
  return isas;
}

Isa chosen_isa() {
  const std::vector<Isa> isas = available_isas();
  const char* requested = std::getenv("RAGVL_CPU_ISA");
  if (requested == nullptr || *requested == '\0') return isas.back();
  std::string names;
  for (Isa isa : isas) {
    if (std::string(requested) == isa_name(isa)) return isa;
    names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("RAGVL_CPU_ISA=" + std::string(requested) +
                              " is not available on this CPU; available: " + names);
}

}  // namespace ragvl
