// `mamba_aot._C`: what the op library holds, seen from Python. It computes nothing.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <string>

#include "runtime/c_api.h"

namespace py = pybind11;

namespace {

// The library beside this module, or the one that MAMBA_AOT_LIBRARY names.
std::string library_path() {
  if (const char* chosen = std::getenv("MAMBA_AOT_LIBRARY"); chosen != nullptr && *chosen != '\0')
    return chosen;
  Dl_info here{};
  dladdr(reinterpret_cast<void*>(&library_path), &here);
  const std::string module = here.dli_fname;
  return module.substr(0, module.rfind('/') + 1) + "libmamba_aot.so";
}

// Loads the op library, which registers its ops with torch unless they are there already.
void* library() {
  static void* const handle = [] {
    const std::string path = library_path();
    void* opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) {
      throw py::import_error("mamba_aot._C: the op library could not be loaded (" + std::string(dlerror()) +
                             "); import torch (2.10 or newer) first, or reinstall mamba-aot");
    }
    return opened;
  }();
  return handle;
}

template <class Function>
Function* find(const char* name) {
  auto* function = reinterpret_cast<Function*>(dlsym(library(), name));
  if (function == nullptr) {
    throw py::import_error(std::string("mamba_aot._C: the op library has no ") + name +
                           ", so it is from another version; reinstall mamba-aot");
  }
  return function;
}

py::list variants() {
  const auto get_image = find<decltype(mamba_aot_get_image)>("mamba_aot_get_image");
  py::list rows;
  mamba_aot_image image;
  for (int32_t index = 0; get_image(index, &image) == 0; ++index) {
    py::dict row;
    row["id"] = image.id;
    row["variant"] = image.variant;
    row["stem"] = image.stem;
    row["entry"] = image.entry;
    row["arch"] = image.arch;
    row["ptx"] = image.ptx != 0;
    row["num_warps"] = image.num_warps;
    row["shared_bytes"] = image.shared_bytes;
    row["registers"] = image.registers;
    row["spill_bytes"] = image.spill_bytes;
    row["size"] = image.size;
    row["sha256"] = image.sha256;
    rows.append(row);
  }
  return rows;
}

py::object build_info() {
  const auto read = find<decltype(mamba_aot_build_info)>("mamba_aot_build_info");
  return py::module_::import("json").attr("loads")(read());
}

py::bytes image(const std::string& id) {
  const auto get_image = find<decltype(mamba_aot_get_image)>("mamba_aot_get_image");
  mamba_aot_image found;
  for (int32_t index = 0; get_image(index, &found) == 0; ++index) {
    if (id == found.id) return py::bytes(reinterpret_cast<const char*>(found.data), found.size);
  }
  throw py::key_error("image: id must be one of variants()'s, got " + id);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "What the op library of mamba_aot holds: kernels and how they were built.";
  library();
  module.def("variants", &variants, "A dict for every embedded image: id, arch, registers, spill_bytes, ...");
  module.def("build_info", &build_info, "A dict of what the library was built from.");
  module.def("image", &image, py::arg("id"),
             "The bytes of an image: a cubin, or PTX with a closing zero byte.");
}
