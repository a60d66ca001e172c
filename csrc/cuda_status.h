#pragma once

namespace ragvl {

// Why this build's CUDA kernels cannot run on the current device (a driver that is too old, an
// architecture they were not compiled for), or null where they can.
const char* cuda_problem();

// Why the last launch failed, or null.
const char* launch_problem();

}  // namespace ragvl
