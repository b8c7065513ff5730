// Which instructions kernels may use.
#pragma once

namespace onnxq {

// Each includes those before it of the same architecture.
enum class Instructions {
  kGeneric,  // the baseline of the architecture
  kAvx2,     // AVX2, FMA, F16C
  kAvx512,   // AVX-512 F, BW, DQ, VL
  kVnni,     // AVX-512 VNNI, VBMI, VBMI2, BITALG
  kAmx,      // AMX tiles of int8
  // 64-bit ARM has levels of its own, with the same numbers: kernels of the other architecture are
  // null, so that a choice names those of a level of both.
  kDot = kAvx2,     // NEON products of four bytes
  kI8mm = kAvx512,  // NEON matrix products of int8, and products of unsigned and signed bytes
};

// The best this CPU has. The environment variable ONNXQ_INSTRUCTIONS (generic, avx2, avx512, vnni,
// amx, dot, i8mm) caps it; it is read at every call, so that a session takes what holds when it is
// created. An unknown word caps nothing.
Instructions instructions();

// Whether this thread may use AMX tiles: asks the kernel for them. Call it on every thread that
// is to use them, before its first tile instruction.
bool amx_permitted();

}  // namespace onnxq
