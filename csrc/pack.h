// Elements that a CUDA thread loads and stores at once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ragvl {
namespace {

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T item[N];
};

template <int N, class T>
__device__ Pack<T, N> load(const T* pointer, int64_t i) {
  return *reinterpret_cast<const Pack<T, N>*>(pointer + i);
}

// Whether packs of N elements lie at `pointer`; true of null, where nothing lies.
template <class T, int N>
bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(Pack<T, N>) == 0;
}

}  // namespace
}  // namespace ragvl
