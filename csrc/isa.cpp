#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(RAGVL_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ragvl {
#ifdef RAGVL_X86
namespace {

// Whether this process may use AMX's tiles. Linux has to be asked, since they make what it saves of
// a thread much larger.
bool may_use_tiles() {
#ifdef __linux__
  constexpr unsigned tile = 1u << 24, int8 = 1u << 25, bf16 = 1u << 22;  // CPUID 7, EDX
  constexpr long ask_for_state = 0x1023, tile_data = 18;                 // ARCH_REQ_XCOMP_PERM
  unsigned a, b, c, d;
  const unsigned wanted = tile | int8 | bf16;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & wanted) == wanted &&
         syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
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
        if (__builtin_cpu_supports("avx512bf16")) {
          isas.push_back(Isa::avx512_bf16);
          static const bool tiles = may_use_tiles();
          if (tiles) isas.push_back(Isa::amx);
        }
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
