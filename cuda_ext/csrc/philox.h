// Philox4x32-10 (Salmon et al., SC 2011): a key of two words and a counter of four give four words.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define REPLICA_BOTH __host__ __device__
#else
#define REPLICA_BOTH
#endif

namespace philox {

constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kIncrement0 = 0x9E3779B9, kIncrement1 = 0xBB67AE85;

struct Key {
  uint32_t word0, word1;
};

struct Words {
  uint32_t at[4];
};

REPLICA_BOTH inline void round_once(
    uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t key0, uint32_t key1) {
  const uint64_t product0 = uint64_t{kMultiplier0} * c0, product1 = uint64_t{kMultiplier1} * c2;
  c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
  c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
  c1 = static_cast<uint32_t>(product1);
  c3 = static_cast<uint32_t>(product0);
}

REPLICA_BOTH inline Words draw(Key key, Words counter) {
  for (int i = 0; i < kRounds; ++i) {
    round_once(
        counter.at[0], counter.at[1], counter.at[2], counter.at[3], key.word0 + i * kIncrement0,
        key.word1 + i * kIncrement1);
  }
  return counter;
}

}  // namespace philox
