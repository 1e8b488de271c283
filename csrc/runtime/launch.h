// Loads images and launches them. Safe from any thread; what was loaded is kept until the process ends.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/variant.h"

namespace mamba_aot::runtime {

// Runs `grid_x` programs of a variant on torch's current stream of `device`; 0 programs are none.
// `parameters` are the addresses of the kernel's arguments, in order, the two unused scratch pointers at the
// end. Throws std::runtime_error: no driver, torch without CUDA, no image for this GPU, an error of the
// driver.
void launch(Variant& variant, int32_t device, uint64_t grid_x, void** parameters);

// Loads a variant for a device ahead of its first launch, if it is for that architecture. Throws like launch.
void preload(Variant& variant, int32_t device);

// Whether launch would find an image for a device. Throws like arch_of.
bool has_image(const Variant& variant, int32_t device);

// 10 * major + minor of a device's compute capability. Throws std::runtime_error: no driver, no such device.
int32_t arch_of(int32_t device);

// How many multiprocessors a device has. Throws like arch_of.
int32_t multiprocessors_of(int32_t device);

// For generated launchers: the table has no such combination.
[[noreturn]] void refuse(const char* stem, const char* op, const std::string& key, const char* config);

}  // namespace mamba_aot::runtime
