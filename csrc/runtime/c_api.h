// The library's C interface: what it holds, for programs in any language. Pointers stay valid for good.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MAMBA_AOT_API __attribute__((visibility("default")))

typedef struct mamba_aot_image {
  const char* id;
  const char* variant; /* the id without the architecture */
  const char* stem;    /* of the kernel file */
  const char* entry;
  const char* sha256;
  const uint8_t* data;
  uint64_t size;
  int32_t arch; /* 10 * major + minor */
  int32_t ptx;  /* 1 for text that the driver compiles */
  int32_t num_warps;
  int32_t shared_bytes;
  int32_t registers;
  int32_t spill_bytes;
} mamba_aot_image;

/* Changes when a structure or function of this header does. */
MAMBA_AOT_API int32_t mamba_aot_api_version(void);

MAMBA_AOT_API int32_t mamba_aot_image_count(void);

/* Fills `image`; 0 on success, 1 when there is no such index. */
MAMBA_AOT_API int32_t mamba_aot_get_image(int32_t index, mamba_aot_image* image);

/* What the library was built from, as a JSON object. */
MAMBA_AOT_API const char* mamba_aot_build_info(void);

/* Loads every image for a CUDA device, so that no later call waits for it: 0 on success; else 1 and a
   sentence of at most `size` bytes in `message`. */
MAMBA_AOT_API int32_t mamba_aot_preload(int32_t device, char* message, uint64_t size);

/* Sets a tuned number, such as "causal_conv1d_fwd.THREADS", for the rest of the process; a negative value
   gives the measured ones back. 0 on success, 1 when there is no number of this name. For tools.aot tune. */
MAMBA_AOT_API int32_t mamba_aot_set_tuned(const char* name, int64_t value);

#ifdef __cplusplus
}
#endif
