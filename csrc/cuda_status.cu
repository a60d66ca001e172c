#include "cuda_status.h"

#include <cuda_runtime.h>

namespace ragvl {
namespace {
__global__ void probe() {}
}  // namespace

const char* cuda_problem() {
  cudaFuncAttributes attributes;  // loads the kernel for the device without running it
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // forgets the error, which is answered here
  return cudaGetErrorString(error);
}

const char* launch_problem() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ragvl
