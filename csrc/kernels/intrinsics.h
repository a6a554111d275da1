/*
 * intrinsics.h - x86's intrinsics, of all instruction sets: a file names those that its functions use.
 */
#ifndef L2C_INTRINSICS_H
#define L2C_INTRINSICS_H

/* As clang does everywhere else; where it is Microsoft's compiler as well, its header leaves out those that the
 * whole program may not use. */
#if defined(__clang__) && defined(_MSC_VER)
#pragma push_macro("_MSC_VER")
#undef _MSC_VER
#include <immintrin.h>
#pragma pop_macro("_MSC_VER")
#else
#include <immintrin.h>
#endif

#endif
