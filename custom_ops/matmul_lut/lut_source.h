// Source of the files of one instruction set each, lut_*.cpp, its only readers. Before, each
// defines
//
//   Floats, kFloats, kAbreast, zero, spread, load, multiply_add, total   vectors of float32
//   Sums, dot(w, a, columns), to_floats(sums)        products of int8, of 16, 32 or 64 columns
//   look_up(table, lines, layout, inside, out)       entries of one unit
//   expand_run(table, scale, numbers, count, out)    count a multiple of 16
//   kOffset                                          added to the entries of tables
//
// No standard library templates here: a template compiled for newer CPUs could be the copy that
// the linker keeps for everyone.

namespace onnxq {
namespace {

constexpr int64_t kBlock = kUnit * kUnitsPerBlock;

// max |a|, as integers: NaN is larger than infinity.
float largest(const float* a, int64_t count) {
  int32_t most = 0;
  for (int64_t index = 0; index < count; ++index) {
    int32_t bits;
    __builtin_memcpy(&bits, a + index, sizeof(bits));
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float value;
  __builtin_memcpy(&value, &most, sizeof(value));
  return value;
}

void round_run(const float* a, int64_t count, float inverse, int8_t* codes) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: sums with it are whole, ties to even
  for (int64_t index = 0; index < count; ++index) {
    const float rounded = a[index] * inverse + kRounder;
    int32_t bits;
    __builtin_memcpy(&bits, &rounded, sizeof(bits));
    codes[index] = static_cast<int8_t>(bits & 0xff);
  }
}

// What the sums of `units` units begin with.
void find_start(const int8_t* codes, int64_t units, int32_t* start) {
  for (int64_t lane = 0; lane < kUnit / 4; ++lane) {
    int32_t sum = 0;
    for (int64_t unit = 0; unit < units; ++unit) {
      const int8_t* four = codes + unit * kUnit + lane * 4;
      sum += four[0] + four[1] + four[2] + four[3];
    }
    start[lane] = -kOffset * sum;
  }
}

void round_token(const LutToken& layout, const float* a, uint8_t* token) {
  constexpr float kLeast = 1e-30f;
  int8_t* codes = reinterpret_cast<int8_t*>(token);
  int32_t* start = reinterpret_cast<int32_t*>(token + layout.start);
  float* scales = reinterpret_cast<float*>(token + layout.scale);
  const int64_t units = kUnitsPerBlock / layout.starts_in_block;
  for (int64_t block = 0; block < layout.blocks; ++block, a += kBlock, codes += kBlock) {
    const int64_t left = layout.columns - block * kBlock;
    const int64_t here = left < 0 ? 0 : left < kBlock ? left : kBlock;
    float most = largest(a, here);
    if (most < kLeast) most = kLeast;
    scales[block] = most / 127.0f;
    round_run(a, here, 127.0f / most, codes);
    for (int64_t column = here; column < kBlock; ++column) codes[column] = 0;
    if (kOffset == 0) continue;
    for (int64_t at = 0; at < layout.starts_in_block; ++at, start += kUnit / 4) {
      find_start(codes + at * units * kUnit, units, start);
    }
  }
}

void decode(const LutMatrix& w, int64_t row, int64_t first, int64_t last, uint8_t* out) {
  const LutLayout layout = w.layout;
  const int64_t units = layout.units(), bytes = layout.lines() * kUnit;
  const uint8_t* lines = w.row(row) + first / units * bytes;
  for (int64_t unit = first, inside = 0; unit < last; ++unit, out += kUnit) {
    look_up(w.tables + w.table_at(row, unit), lines, layout, inside, out);
    if (++inside == units) {
      inside = 0;
      lines += bytes;
    }
  }
}

void expand(const LutMatrix& w, int64_t row, int64_t first, int64_t last, const uint8_t* numbers,
            float* out) {
  if (!w.grouped) {
    expand_run(w.values + row * w.table_row, 1.0f, numbers, (last - first) * kUnit, out);
    return;
  }
  const int64_t step = w.group < kUnit ? w.group : kUnit;
  for (int64_t unit = first; unit < last; ++unit, numbers += kUnit, out += kUnit) {
    const float* values = w.values + w.table_at(row, unit);
    const float* scales = w.scales_of(row, unit);
    for (int64_t column = 0; column < kUnit; column += step) {
      expand_run(values, scales[column / step], numbers + column, step, out + column);
    }
  }
}

// One row with one token.
[[maybe_unused]] float product(const LutMatrix& w, const uint8_t* entries, int64_t row,
                               int64_t first, int64_t last, const int8_t* a, const float* scales) {
  Floats sum = zero();
  const int64_t step = w.grouped && w.group < kUnit ? w.group : kUnit;
  for (int64_t unit = first; unit < last; ++unit, entries += kUnit) {
    const float scale = scales[unit / kUnitsPerBlock];
    const float* groups = w.scales_of(row, unit);
    for (int64_t column = 0; column < kUnit; column += step) {
      const float both = w.grouped ? scale * groups[column / step] : scale;
      const Sums products = dot(entries + column, a + unit * kUnit + column, step);
      sum = multiply_add(to_floats(products), spread(both), sum);
    }
  }
  return total(sum);
}

[[maybe_unused]] void tile(const LutMatrix& w, const LutToken& layout, const uint8_t* panel,
                           int64_t row, int64_t first, int64_t last, const uint8_t* tokens,
                           int count, float* sums) {
  for (int at = 0; at < count; ++at, tokens += layout.size) {
    for (int index = 0; index < kLutRows; ++index) {
      sums[index * kLutTokens + at] =
          product(w, panel + index * kPanelUnits * kUnit, row + index, first, last,
                  layout.codes_of(tokens), layout.scales_of(tokens));
    }
  }
}

template <int kCount>
inline void products_float(const float* rows, int64_t stride, const float* a, int64_t a_stride,
                           int64_t depth, float* sums) {
  Floats sum[kLutRows][kCount];
#pragma GCC unroll 4
  for (int row = 0; row < kLutRows; ++row) {
#pragma GCC unroll 4
    for (int token = 0; token < kCount; ++token) sum[row][token] = zero();
  }
  int64_t k = 0;
  for (; k + kFloats <= depth; k += kFloats) {
    Floats x[kCount];
#pragma GCC unroll 4
    for (int token = 0; token < kCount; ++token) x[token] = load(a + token * a_stride + k);
#pragma GCC unroll 4
    for (int row = 0; row < kLutRows; ++row) {
      const Floats weight = load(rows + row * stride + k);
#pragma GCC unroll 4
      for (int token = 0; token < kCount; ++token) {
        sum[row][token] = multiply_add(weight, x[token], sum[row][token]);
      }
    }
  }
#pragma GCC unroll 4
  for (int row = 0; row < kLutRows; ++row) {
#pragma GCC unroll 4
    for (int token = 0; token < kCount; ++token) {
      float rest = total(sum[row][token]);
      for (int64_t at = k; at < depth; ++at) {
        rest += rows[row * stride + at] * a[token * a_stride + at];
      }
      sums[row * kLutTokens + token] = rest;
    }
  }
}

void tile_float(const float* rows, int64_t stride, const float* a, int64_t a_stride, int count,
                int64_t depth, float* sums) {
  int token = 0;
  for (; token + kAbreast <= count; token += kAbreast) {
    products_float<kAbreast>(rows, stride, a + token * a_stride, a_stride, depth, sums + token);
  }
  for (; token < count; ++token) {
    products_float<1>(rows, stride, a + token * a_stride, a_stride, depth, sums + token);
  }
}

}  // namespace
}  // namespace onnxq
