// What every vector kernel starts with, precompiled once per instruction set.

#include "cpu/tile.h"
#include "cpu/vector_math.h"
