// Source of every e8p_nearest_*.cpp, which each give it ONNXQ_ISA and are its only readers. All
// loops run over lanes, so that the compiler makes vectors of them. No standard library templates
// here: one compiled for AVX-512 could be the copy that the linker keeps for everyone.
//
// What is nearest to x is what has the largest x·p - |p|²/2. Where the magnitudes |x| are sorted,
// the best pattern with a given number of 3/2 and 5/2 is plain: the larger, the larger. When the
// signs of x are not allowed to it, one of them turns: the one where |x| p is least, which costs
// twice that. So ten candidates for each sign of the shift are enough, of the 256 patterns.

#include <cstring>

#include "e8p_book.h"
#include "e8p_nearest.h"

namespace onnxq {
namespace {

typedef int32_t Ints[kE8pLanes];
typedef float Floats[kE8pLanes];

#define ONNXQ_LANES for (int lane = 0; lane < kE8pLanes; ++lane)

// A magnitude with its place in the three lowest bits: 1 part in 2^20 of it, which turns no choice
// but between points that are that near to equally far away. Sorted as integers.
struct Keys {
  Ints key[8];
};

inline void order(Ints& low, Ints& high) {
  ONNXQ_LANES {
    const int32_t a = low[lane], b = high[lane];
    low[lane] = a < b ? a : b;
    high[lane] = a < b ? b : a;
  }
}

inline void sort4(Ints* key) {
  order(key[0], key[1]);
  order(key[2], key[3]);
  order(key[0], key[2]);
  order(key[1], key[3]);
  order(key[1], key[2]);
}

// Merges two sorted halves (Batcher's odd-even merge).
inline void merge8(Ints* key) {
  for (int index = 0; index < 4; ++index) order(key[index], key[index + 4]);
  order(key[2], key[4]);
  order(key[3], key[5]);
  order(key[1], key[2]);
  order(key[3], key[4]);
  order(key[5], key[6]);
}

inline float magnitude(int32_t key) {
  const int32_t bits = key & ~7;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline int32_t bit(int32_t key) { return 1 << (key & 7); }

inline int32_t key_of(float value, int place) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (bits & 0x7ffffff8) | place;
}

// The best candidate so far, lane by lane.
struct Best {
  Floats score;
  Ints threes, fives, flip;

  [[gnu::always_inline]] void offer(int lane, float value, int32_t three, int32_t five,
                                    int32_t turn) {
    const bool better = value > score[lane];
    score[lane] = better ? value : score[lane];
    threes[lane] = better ? three : threes[lane];
    fives[lane] = better ? five : fives[lane];
    flip[lane] = better ? turn : flip[lane];
  }
};

// For the pattern whose 1/2 are at 2, 3 and 7: their sum, and what is least there and elsewhere.
struct Odd {
  Floats sum;
  Ints inside, outside;
};

inline int32_t lesser(int32_t a, int32_t b) { return a < b ? a : b; }

void find_apart(const Keys& at, Odd& apart) {
  ONNXQ_LANES {
    const int32_t a2 = at.key[2][lane], a3 = at.key[3][lane], a7 = at.key[7][lane];
    apart.sum[lane] = magnitude(a2) + magnitude(a3) + magnitude(a7);
    apart.inside[lane] = lesser(a2, lesser(a3, a7));
    apart.outside[lane] = lesser(lesser(lesser(at.key[0][lane], at.key[1][lane]), at.key[4][lane]),
                                 lesser(at.key[5][lane], at.key[6][lane]));
  }
}

// The best short or long pattern for what is y away from the shift, scores given up to |y|²/2.
template <bool kLong>
void find_pattern(const float* y, Ints& signs, Best& best) {
  Ints parity;
  Floats total;
  Keys whole, halves;
  ONNXQ_LANES { signs[lane] = 0, total[lane] = 0.0f; }
  for (int place = 0; place < 8; ++place) {
    ONNXQ_LANES {
      const float value = y[place * kE8pLanes + lane];
      signs[lane] |= (value < 0.0f ? 1 : 0) << place;
      whole.key[place][lane] = key_of(value, place);
      total[lane] += magnitude(whole.key[place][lane]);
    }
  }
  ONNXQ_LANES {
    int32_t odd = signs[lane] ^ signs[lane] >> 4;
    odd ^= odd >> 2;
    parity[lane] = (odd ^ odd >> 1) & 1;
  }
  Odd apart;
  if (kLong) find_apart(whole, apart);
  sort4(whole.key);
  sort4(whole.key + 4);
  memcpy(&halves, &whole, sizeof whole);
  merge8(whole.key);
  ONNXQ_LANES {
    const int32_t k0 = whole.key[0][lane], k7 = whole.key[7][lane], k6 = whole.key[6][lane];
    const int32_t k5 = whole.key[5][lane], k4 = whole.key[4][lane];
    const int32_t turn = bit(k0), five = bit(k7);
    const float even = parity[lane] ? magnitude(k0) : 0.0f;  // the cost of an even pattern
    const float odd = magnitude(k0) - even;
    const float half = 0.5f * total[lane], a7 = magnitude(k7);
    const float two = half + a7 + magnitude(k6), three = two + magnitude(k5);
    if (!kLong) {
      best.score[lane] = half - 1.0f - even;
      best.threes[lane] = best.fives[lane] = 0;
      best.flip[lane] = turn;
      best.offer(lane, half + a7 - 2.0f - odd, five, 0, turn);
      best.offer(lane, half + 2.0f * a7 - 4.0f - even, five, five, turn);
      best.offer(lane, two - 3.0f - even, five | bit(k6), 0, turn);
      best.offer(lane, three - 4.0f - odd, five | bit(k6) | bit(k5), 0, turn);
      continue;
    }
    best.score[lane] = three + magnitude(k4) - 5.0f - even;
    best.threes[lane] = five | bit(k6) | bit(k5) | bit(k4);
    best.fives[lane] = 0;
    best.flip[lane] = turn;
    best.offer(lane, two + a7 - 5.0f - odd, five | bit(k6), five, turn);
    // Five times 3/2: one 1/2 in the first half and two in the second ...
    const int32_t l0 = halves.key[0][lane], l1 = halves.key[1][lane], l2 = halves.key[2][lane];
    const int32_t h0 = halves.key[4][lane], h1 = halves.key[5][lane];
    const float all = half + total[lane] - 6.0f;
    const float first = magnitude(l0), second = magnitude(h0);
    best.offer(lane, all - first - second - magnitude(h1) - odd,
               0xff & ~(bit(l0) | bit(h0) | bit(h1)), 0, turn);
    // ... or three in the first ...
    const bool within = first < 3.0f * second;
    const float least = parity[lane] ? 0.0f : (within ? first : 3.0f * second);
    best.offer(lane, all - first - magnitude(l1) - magnitude(l2) - least,
               0xff & ~(bit(l0) | bit(l1) | bit(l2)), 0, within ? bit(l0) : bit(h0));
    // ... or at 2, 3 and 7.
    const float one = magnitude(apart.inside[lane]), other = 3.0f * magnitude(apart.outside[lane]);
    const float penalty = parity[lane] ? 0.0f : (one < other ? one : other);
    best.offer(lane, all - apart.sum[lane] - penalty, 0x73, 0,
               one < other ? bit(apart.inside[lane]) : bit(apart.outside[lane]));
  }
  ONNXQ_LANES {
    int32_t odd = best.threes[lane] ^ best.fives[lane];
    odd ^= odd >> 4;
    odd ^= odd >> 2;
    odd = (odd ^ odd >> 1) & 1;
    signs[lane] ^= odd == parity[lane] ? 0 : best.flip[lane];
  }
}

// What is nearest so far.
struct Nearest {
  Floats distance;
  int32_t *signs, *threes, *fives, *shift, *gain;
};

template <bool kLong>
void find_gain(const float* x, const E8pGains& gains, Nearest& nearest) {
  const int whole = kLong ? gains.longer : gains.shorter;
  const float gain = static_cast<float>(4 * whole) / gains.unit;
  float y[8 * kE8pLanes];
  for (int side = 0; side < 2; ++side) {
    Ints turned;
    Best best;
    Floats square;
    ONNXQ_LANES { square[lane] = 0.0f; }
    for (int place = 0; place < 8; ++place) {
      ONNXQ_LANES {
        const float value = x[place * kE8pLanes + lane] * (1.0f / gain) - (side ? 0.25f : -0.25f);
        y[place * kE8pLanes + lane] = value;
        square[lane] += value * value;
      }
    }
    find_pattern<kLong>(y, turned, best);
    ONNXQ_LANES {
      const float away = (square[lane] - 2.0f * best.score[lane]) * (gain * gain);
      const bool better = away < nearest.distance[lane];
      nearest.distance[lane] = better ? away : nearest.distance[lane];
      nearest.signs[lane] = better ? turned[lane] : nearest.signs[lane];
      nearest.threes[lane] = better ? best.threes[lane] : nearest.threes[lane];
      nearest.fives[lane] = better ? best.fives[lane] : nearest.fives[lane];
      nearest.shift[lane] = better ? side : nearest.shift[lane];
      nearest.gain[lane] = better ? whole : nearest.gain[lane];
    }
  }
}

void nearest_e8p(const float* x, const E8pGains& gains, float* point, int32_t* signs,
                 int32_t* threes, int32_t* fives, int32_t* shift) {
  Ints gain;
  Nearest nearest = {{}, signs, threes, fives, shift, gain};
  ONNXQ_LANES {
    nearest.distance[lane] = 3.0e38f;
    signs[lane] = threes[lane] = fives[lane] = shift[lane] = 0;
    gain[lane] = gains.shorter;
  }
  find_gain<false>(x, gains, nearest);
  find_gain<true>(x, gains, nearest);
  for (int place = 0; place < 8; ++place) {
    ONNXQ_LANES {
      const int32_t size = 2 + 4 * (threes[lane] >> place & 1) + 4 * (fives[lane] >> place & 1);
      const int32_t value = (signs[lane] >> place & 1 ? -size : size) + 2 * shift[lane] - 1;
      point[place * kE8pLanes + lane] = static_cast<float>(value * gain[lane]);
    }
  }
}

// Zero, two of ±1, eight of ±1/2 with an even number of minus signs, or one of ±2 (not -2 at the
// last place).
void nearest_bit(const float* x, float* point) {
  Ints signs, parity, kind, flip, high, next;
  Floats total;
  Keys keys;
  ONNXQ_LANES { signs[lane] = 0, total[lane] = 0.0f; }
  for (int place = 0; place < 8; ++place) {
    ONNXQ_LANES {
      const float value = x[place * kE8pLanes + lane];
      signs[lane] |= (value < 0.0f ? 1 : 0) << place;
      keys.key[place][lane] = key_of(value, place);
      total[lane] += magnitude(keys.key[place][lane]);
    }
  }
  sort4(keys.key);
  sort4(keys.key + 4);
  merge8(keys.key);
  ONNXQ_LANES {
    int32_t odd = signs[lane] ^ signs[lane] >> 4;
    odd ^= odd >> 2;
    parity[lane] = (odd ^ odd >> 1) & 1;
    high[lane] = bit(keys.key[7][lane]);
    next[lane] = bit(keys.key[6][lane]);
    const float top = magnitude(keys.key[7][lane]), second = magnitude(keys.key[6][lane]);
    const float least = magnitude(keys.key[0][lane]);
    const float half = 0.5f * total[lane] - 1.0f - (parity[lane] ? least : 0.0f);
    const float two = top + second - 1.0f;
    const bool missing = high[lane] == 128 && signs[lane] >> 7;
    const float four = missing ? -1.0f : 2.0f * top - 2.0f;
    float score = 0.0f;
    int32_t which = 0;
    which = half > score ? 1 : which;
    score = half > score ? half : score;
    which = two > score ? 2 : which;
    score = two > score ? two : score;
    kind[lane] = four > score ? 4 : which;
    flip[lane] = parity[lane] ? bit(keys.key[0][lane]) : 0;
  }
  for (int place = 0; place < 8; ++place) {
    ONNXQ_LANES {
      const int32_t here = (kind[lane] == 4 ? high[lane] : high[lane] | next[lane]) >> place & 1;
      const int32_t size = kind[lane] == 1 ? 1 : here * kind[lane];
      const int32_t turned = kind[lane] == 1 ? signs[lane] ^ flip[lane] : signs[lane];
      point[place * kE8pLanes + lane] = static_cast<float>(turned >> place & 1 ? -size : size);
    }
  }
}

const E8pNearest kKernels = {ONNXQ_ISA, nearest_e8p, nearest_bit};

}  // namespace
}  // namespace onnxq
