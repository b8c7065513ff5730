// Source of matmul_trellis_{generic,avx2,avx512,vnni}.cpp, which each give it the type `Vector`,
// and are its only readers. No standard library templates here: a template compiled for AVX-512
// could be the copy that the linker keeps for everyone.
//
// Vector has 16 lanes of 32 bits, those of the rows of a tile, as `Words`; `Floats`; a `Table` of
// magnitudes; and kTile tokens that decoded weights are multiplied by at once.
#include "matmul_trellis.h"

namespace onnxq {
namespace {

// The bits of 16 rows of a tile from any place on, to the end of the row behind.
template <class V, int kRun>
struct Ring {
  static constexpr int kWhole = kRun / 4, kRest = kRun % 4;
  typename V::Words word[kWhole + 2];

  [[gnu::always_inline]] explicit Ring(const uint8_t* tile) {
    const uint8_t* rest = tile + 64 * kWhole;
    for (int at = 0; at < kWhole; ++at) word[at] = V::load(tile + 64 * at);
    if constexpr (kRest == 1) word[kWhole] = V::load8(rest);
    if constexpr (kRest >= 2) word[kWhole] = V::load16(rest);
    if constexpr (kRest == 3) {
      word[kWhole] = V::either(word[kWhole], V::template shift_left<16>(V::load8(rest + 32)));
    }
    const typename V::Words next = V::next(word[0]);
    if constexpr (kRest == 0) {
      word[kWhole] = word[kWhole + 1] = next;
    } else {
      constexpr int kBits = 8 * kRest;
      word[kWhole] = V::either(word[kWhole], V::template shift_left<kBits>(next));
      word[kWhole + 1] = V::template shift_right<32 - kBits>(next);
    }
  }

  // At least kCount bits from bit kAt on.
  template <int kAt, int kCount>
  [[gnu::always_inline]] typename V::Words from() const {
    constexpr int kWord = kAt / 32, kShift = kAt % 32;
    if constexpr (kShift == 0) {
      return word[kWord];
    } else if constexpr (kShift + kCount <= 32) {
      return V::template shift_right<kShift>(word[kWord]);
    } else {
      return V::template join<kShift>(word[kWord], word[kWord + 1]);
    }
  }
};

// A decoder is what makes of bits of a tile: kParts vectors that a token is multiplied by with
// `add`, each of kColumns columns, lying kBias too high; or kVectors vectors of whole numbers that
// are multiplied one by one, each of 4 / kBytes columns of kBytes bytes. A part of one column is
// multiplied with what `spread` makes of a number of the token, one of four with four of them.

template <class V, int kSteps>
struct OneMad {
  static constexpr int kRun = 2 * kSteps, kParts = 16, kColumns = 1, kVectors = 8, kBytes = 2;
  static constexpr int32_t kBias = kOneMadMean;
  using Words = typename V::Words;
  Words mask;

  explicit OneMad(int state_bits) : mask(V::all((1 << state_bits) - 1)) {}

  template <int kPart>
  [[gnu::always_inline]] Words part(const Ring<V, kRun>& ring) const {
    const Words states = V::choose(ring.template from<kPart * kSteps, 16>(), mask,
                                   static_cast<int32_t>(kOneMad.before()));
    return V::times(states, static_cast<int32_t>(kOneMad.factor));
  }
  static int32_t spread(int8_t q) { return V::spread_byte(q); }
  [[gnu::always_inline]] static Words add(Words sums, Words part, Words q) {
    return V::add_bytes(sums, part, q);
  }
  template <int kVector>
  [[gnu::always_inline]] Words vector(const Ring<V, kRun>& ring) const {
    return V::pair(V::byte_sums(part<2 * kVector>(ring), -kOneMadMean),
                   V::byte_sums(part<2 * kVector + 1>(ring), -kOneMadMean));
  }
};

template <class V, int kSteps>
struct ThreeInst {
  static constexpr int kRun = 2 * kSteps, kParts = 16, kColumns = 1, kVectors = 8, kBytes = 2;
  static constexpr int32_t kBias = 0;
  using Words = typename V::Words;
  Words mask;

  explicit ThreeInst(int state_bits) : mask(V::all((1 << state_bits) - 1)) {}

  // Two whole numbers whose sum it is.
  template <int kPart>
  [[gnu::always_inline]] Words part(const Ring<V, kRun>& ring) const {
    const Words states = V::choose(ring.template from<kPart * kSteps, 16>(), mask,
                                   static_cast<int32_t>(kThreeInst.before()));
    return V::halves(V::times(states, static_cast<int32_t>(kThreeInst.factor)));
  }
  static int32_t spread(int8_t q) { return both_halves(q); }
  [[gnu::always_inline]] static Words add(Words sums, Words part, Words q) {
    return V::add_pairs(sums, part, q);
  }
  template <int kVector>
  [[gnu::always_inline]] Words vector(const Ring<V, kRun>& ring) const {
    return V::pair(V::pair_sums(part<2 * kVector>(ring)),
                   V::pair_sums(part<2 * kVector + 1>(ring)));
  }
};

template <class V, int kSteps>
struct Hyb {
  static constexpr int kRun = kSteps, kParts = 4, kColumns = 4, kVectors = 4, kBytes = 1;
  static constexpr int32_t kBias = V::kByteBias;
  using Words = typename V::Words;
  Words mask;
  typename V::Table table;

  explicit Hyb(int state_bits)
      : mask(V::all(((1 << state_bits) - 1) * 0x10001u)), table(kTrellisMagnitudes) {}

  template <int kPart>
  [[gnu::always_inline]] Words part(const Ring<V, kRun>& ring) const {
    const Words bits = ring.template from<2 * kPart * kSteps, 16 + kSteps>();
    const Words states = V::both(V::template two<kSteps>(bits), mask);
    return table.look_up(V::upper(states, kHybFactor));
  }
  static int32_t spread(int8_t) { return 0; }
  [[gnu::always_inline]] static Words add(Words sums, Words part, Words q) {
    return V::add_fours(sums, part, q);
  }
  template <int kVector>
  [[gnu::always_inline]] Words vector(const Ring<V, kRun>& ring) const {
    return part<kVector>(ring);
  }
};

// Products of a tile, from part kPart on.
template <class V, class Decoder, int kTokens, int kChains, int kPart = 0>
[[gnu::always_inline]] inline void add_tile(const Decoder& decoder,
                                            const Ring<V, Decoder::kRun>& ring,
                                            const int8_t* const* q, int64_t at,
                                            typename V::Words (*sums)[kChains]) {
  if constexpr (kPart < Decoder::kParts) {
    const typename V::Words part = decoder.template part<kPart>(ring);
#pragma GCC unroll 4
    for (int token = 0; token < kTokens; ++token) {
      typename V::Words& sum = sums[token][kPart % kChains];
      int32_t four;
      __builtin_memcpy(&four, q[token] + at + 4 * kPart, sizeof(four));
      sum = Decoder::add(sum, part, V::all(four));
    }
    add_tile<V, Decoder, kTokens, kChains, kPart + 1>(decoder, ring, q, at, sums);
  }
}

// What a row tile gives for a token, to where it belongs; `first` says that nothing is there yet.
template <class V>
[[gnu::always_inline]] inline void put(typename V::Floats result, float* y, int64_t rows,
                                       bool is_first) {
  if (rows == kTrellisTile) {
    V::store_floats(y, is_first ? result : V::add_floats(V::load_floats(y), result));
    return;
  }
  float some[kTrellisTile];
  V::store_floats(some, result);
  for (int64_t row = 0; row < rows; ++row) y[row] = is_first ? some[row] : y[row] + some[row];
}

// One block of rows.
struct Block {
  const uint8_t* codes;
  const float* scales;
  int64_t first, rows;
};

// kTokens tokens of which `count` are there: bits become products in registers.
template <class V, class Decoder, int kTokens>
void multiply_few(const TrellisMatrix& w, const Block& block, const uint8_t* const* tokens,
                  int64_t count, float* const* y) {
  constexpr int kChains = kTokens == 1 ? 4 : kTokens == 2 ? 2 : 1;
  const IntMatrix shape = w.token_shape();
  const IntToken layout(shape);
  const Decoder decoder(w.state_bits);
  constexpr bool kIsSpread = Decoder::kColumns == 1;
  alignas(64) int32_t spread[kTokens][kIsSpread ? kTrellisChunk : 1];
  const int8_t* q[kTokens];
  typename V::Floats results[kTokens];
  for (int token = 0; token < kTokens; ++token) results[token] = V::no_floats();
  const uint8_t* tile = block.codes;
  int64_t column = 0;
  for (int64_t chunk = 0; chunk < shape.groups; ++chunk) {
    int64_t end = column + kTrellisChunk;
    if (end > w.columns) end = w.columns;
    typename V::Words sums[kTokens][kChains];
    for (int token = 0; token < kTokens; ++token) {
      q[token] = layout.codes_of(tokens[token]) + column;
      if constexpr (kIsSpread) {
        const int64_t count = end - column;
        for (int64_t at = 0; at < count; ++at) spread[token][at] = Decoder::spread(q[token][at]);
        q[token] = reinterpret_cast<const int8_t*>(spread[token]);
      }
      const int32_t sum = layout.sums_of(tokens[token])[chunk];
      sums[token][0] = V::all(-Decoder::kBias * sum);
      for (int chain = 1; chain < kChains; ++chain) sums[token][chain] = V::all(0);
    }
    for (int64_t at = 0; column < end; column += kTrellisTile, at += 4 * Decoder::kParts) {
      V::prefetch(tile);
      const Ring<V, Decoder::kRun> ring(tile);
      add_tile<V, Decoder, kTokens, kChains>(decoder, ring, q, at, sums);
      tile += kTrellisTile * Decoder::kRun;
    }
    for (int token = 0; token < kTokens; ++token) {
      typename V::Words sum = sums[token][0];
      for (int chain = 1; chain < kChains; ++chain) sum = V::add(sum, sums[token][chain]);
      results[token] = V::add_floats(results[token], V::floats(sum));
    }
  }
  const typename V::Floats scales = V::load_floats(block.scales);
  for (int64_t token = 0; token < count; ++token) {
    const typename V::Floats scale = V::all_floats(layout.scale_of(tokens[token]));
    put<V>(V::multiply(V::multiply(results[token], scale), scales), y[token], block.rows, true);
  }
}

// Whole numbers of a tile, from vector kVector on.
template <class V, class Decoder, int kVector = 0>
[[gnu::always_inline]] inline void decode_tile(const Decoder& decoder,
                                               const Ring<V, Decoder::kRun>& ring, uint8_t* to) {
  if constexpr (kVector < Decoder::kVectors) {
    V::store(to + 64 * kVector, decoder.template vector<kVector>(ring));
    decode_tile<V, Decoder, kVector + 1>(decoder, ring, to);
  }
}

template <class V, class Decoder>
void decode(const uint8_t* tile, int64_t tiles, int state_bits, uint8_t* to) {
  const Decoder decoder(state_bits);
  for (int64_t at = 0; at < tiles; ++at) {
    V::prefetch(tile);
    const Ring<V, Decoder::kRun> ring(tile);
    decode_tile<V, Decoder>(decoder, ring, to);
    tile += kTrellisTile * Decoder::kRun;
    to += 64 * Decoder::kVectors;
  }
}

// What is compiled for a code and its step.
struct Way {
  using Few = void (*)(const TrellisMatrix&, const Block&, const uint8_t* const*, int64_t,
                       float* const*);
  Few few[3];  // for 1, 2 and 4 tokens
  void (*decode)(const uint8_t* tile, int64_t tiles, int state_bits, uint8_t* to);
  int bytes;     // of a whole number
  int32_t bias;  // of bytes
};

template <class V, class Decoder>
constexpr Way way_with() {
  return {{multiply_few<V, Decoder, 1>, multiply_few<V, Decoder, 2>, multiply_few<V, Decoder, 4>},
          decode<V, Decoder>,
          Decoder::kBytes,
          Decoder::kBytes == 1 ? Decoder::kBias : 0};
}

Way way_of(const TrellisMatrix& w) {
  using V = Vector;
  static constexpr Way kOne[] = {way_with<V, OneMad<V, 1>>(), way_with<V, OneMad<V, 2>>(),
                                 way_with<V, OneMad<V, 3>>(), way_with<V, OneMad<V, 4>>()};
  static constexpr Way kThree[] = {way_with<V, ThreeInst<V, 1>>(), way_with<V, ThreeInst<V, 2>>(),
                                   way_with<V, ThreeInst<V, 3>>(), way_with<V, ThreeInst<V, 4>>()};
  static constexpr Way kTwo[] = {way_with<V, Hyb<V, 3>>(), way_with<V, Hyb<V, 4>>(),
                                 way_with<V, Hyb<V, 5>>(), way_with<V, Hyb<V, 6>>(),
                                 way_with<V, Hyb<V, 7>>(), way_with<V, Hyb<V, 8>>()};
  if (w.code == TrellisCode::kHyb) return kTwo[w.step_bits - 3];
  return (w.code == TrellisCode::k1Mad ? kOne : kThree)[w.step_bits - 1];
}

// Sums of the products of a chunk, decoded, with kTokens tokens, four bytes of each at a time.
template <class V, bool kIsBytes, int kTokens>
void multiply_chunk(const uint8_t* decoded, int64_t vectors, const int8_t* const* q,
                    typename V::Words* sums) {
  typename V::Words local[kTokens];
  for (int token = 0; token < kTokens; ++token) local[token] = sums[token];
  for (int64_t at = 0; at < vectors; ++at) {
    const typename V::Words weights = V::load(decoded + 64 * at);
#pragma GCC unroll 16
    for (int token = 0; token < kTokens; ++token) {
      int32_t four;
      __builtin_memcpy(&four, q[token] + 4 * at, sizeof(four));
      if constexpr (kIsBytes) {
        local[token] = V::add_fours(local[token], weights, V::all(four));
      } else {
        local[token] = V::add_pairs(local[token], weights, V::all(four));
      }
    }
  }
  for (int token = 0; token < kTokens; ++token) sums[token] = local[token];
}

// All tokens times a decoded chunk of a block, added to y.
template <class V, bool kIsBytes>
void multiply_many(const TrellisMatrix& w, const Block& block, const Way& way, int64_t chunk,
                   const uint8_t* decoded, const uint8_t* prepared, int64_t tokens, float* y,
                   int64_t stride) {
  const IntToken layout(w.token_shape());
  const int64_t column = chunk * kTrellisChunk;
  const int64_t columns = w.columns - column < kTrellisChunk ? w.columns - column : kTrellisChunk;
  alignas(64) int8_t wide[V::kTile][kIsBytes ? 1 : 2 * kTrellisChunk];
  const typename V::Floats scales = V::load_floats(block.scales);
  for (int64_t first = 0; first < tokens; first += V::kTile) {
    const int64_t count = tokens - first < V::kTile ? tokens - first : V::kTile;
    const int8_t* q[V::kTile];
    typename V::Words sums[V::kTile];
    for (int token = 0; token < V::kTile; ++token) {
      const uint8_t* from = prepared + (first + (token < count ? token : 0)) * layout.size;
      q[token] = layout.codes_of(from) + column;
      sums[token] = V::all(-way.bias * layout.sums_of(from)[chunk]);
      if constexpr (!kIsBytes) {
        if (token < count) V::widen(q[token], columns, wide[token]);
        q[token] = wide[token < count ? token : 0];
      }
    }
    multiply_chunk<V, kIsBytes, V::kTile>(decoded, columns / (kIsBytes ? 4 : 2), q, sums);
    for (int64_t token = 0; token < count; ++token) {
      const float scale = layout.scale_of(prepared + (first + token) * layout.size);
      put<V>(V::multiply(V::multiply(V::floats(sums[token]), V::all_floats(scale)), scales),
             y + (first + token) * stride + block.first, block.rows, chunk == 0);
    }
  }
}

Block block_at(const TrellisMatrix& w, int64_t row, int64_t end) {
  const int64_t at = row / kTrellisTile;
  return {w.codes + at * w.block_bytes(), w.scales + row, row,
          end - row < kTrellisTile ? end - row : kTrellisTile};
}

// Up to as many tokens are multiplied by bits in registers, so often that decoding is repeated.
constexpr int64_t kFew = 4;

void multiply(const TrellisMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
              int64_t stride, int64_t begin, int64_t end) {
  const Way way = way_of(w);
  const int64_t size = IntToken(w.token_shape()).size;
  alignas(64) uint8_t decoded[kTrellisTile * kTrellisChunk * 2];
  for (int64_t row = begin; row < end; row += kTrellisTile) {
    const Block block = block_at(w, row, end);
    if (tokens <= kFew) {
      const uint8_t* from[kFew];
      float* to[kFew];
      for (int64_t token = 0; token < kFew; ++token) {
        const int64_t one = token < tokens ? token : 0;
        from[token] = prepared + one * size;
        to[token] = y + one * stride + row;
      }
      way.few[tokens == 1 ? 0 : tokens == 2 ? 1 : 2](w, block, from, tokens, to);
      continue;
    }
    for (int64_t column = 0; column < w.columns; column += kTrellisChunk) {
      const int64_t left = w.columns - column;
      const int64_t tiles = (left < kTrellisChunk ? left : kTrellisChunk) / kTrellisTile;
      way.decode(block.codes + column / kTrellisTile * w.tile_bytes(), tiles, w.state_bits,
                 decoded);
      (way.bytes == 1 ? multiply_many<Vector, true>
                      : multiply_many<Vector, false>)(w, block, way, column / kTrellisChunk,
                                                      decoded, prepared, tokens, y, stride);
    }
  }
}

// Whole numbers as floats, [columns][16].
template <class V>
void widen_chunk(const uint8_t* decoded, int64_t columns, int bytes, float* to) {
  for (int64_t at = 0; at < columns * bytes / 4; ++at) {
    const typename V::Words weights = V::load(decoded + 64 * at);
    if (bytes == 2) {
      V::store_floats(to, V::floats(V::low_half(weights)));
      V::store_floats(to + 16, V::floats(V::high_half(weights)));
      to += 32;
    } else {
      V::store_floats(to, V::floats(V::template byte<0>(weights)));
      V::store_floats(to + 16, V::floats(V::template byte<1>(weights)));
      V::store_floats(to + 32, V::floats(V::template byte<2>(weights)));
      V::store_floats(to + 48, V::floats(V::template byte<3>(weights)));
      to += 64;
    }
  }
}

template <class V, int kTokens>
void multiply_floats(const float* weights, int64_t columns, const float* const* a,
                     typename V::Floats* results) {
  typename V::Floats sums[kTokens];
  for (int token = 0; token < kTokens; ++token) sums[token] = V::no_floats();
  for (int64_t column = 0; column < columns; ++column) {
    const typename V::Floats weight = V::load_floats(weights + 16 * column);
#pragma GCC unroll 16
    for (int token = 0; token < kTokens; ++token) {
      sums[token] = V::multiply_add(weight, V::all_floats(a[token][column]), sums[token]);
    }
  }
  for (int token = 0; token < kTokens; ++token) results[token] = sums[token];
}

void multiply_float(const TrellisMatrix& w, const float* a, int64_t tokens, float* y,
                    int64_t stride, int64_t begin, int64_t end) {
  using V = Vector;
  constexpr int64_t kChunk = kTrellisChunk / 2;
  const Way way = way_of(w);
  alignas(64) uint8_t decoded[kTrellisTile * kChunk * 2];
  alignas(64) float weights[kTrellisTile * kChunk];
  for (int64_t row = begin; row < end; row += kTrellisTile) {
    const Block block = block_at(w, row, end);
    const V::Floats scales = V::load_floats(block.scales);
    for (int64_t column = 0; column < w.columns; column += kChunk) {
      const int64_t columns = w.columns - column < kChunk ? w.columns - column : kChunk;
      way.decode(block.codes + column / kTrellisTile * w.tile_bytes(), columns / kTrellisTile,
                 w.state_bits, decoded);
      widen_chunk<V>(decoded, columns, way.bytes, weights);
      for (int64_t first = 0; first < tokens; first += V::kTile) {
        const int64_t count = tokens - first < V::kTile ? tokens - first : V::kTile;
        const float* from[V::kTile];
        V::Floats results[V::kTile];
        for (int64_t token = 0; token < V::kTile; ++token) {
          from[token] = a + (first + (token < count ? token : 0)) * w.columns + column;
        }
        if (count == 1) {
          multiply_floats<V, 1>(weights, columns, from, results);
        } else {
          multiply_floats<V, V::kTile>(weights, columns, from, results);
        }
        for (int64_t token = 0; token < count; ++token) {
          put<V>(V::multiply(results[token], scales), y + (first + token) * stride + row,
                 block.rows, column == 0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace onnxq
