// PyTorch's allocator for CPU tensors, with large blocks kept in a region of their own.
//
// The C library hands a large block back to the system when it is freed, and the next tensor of its
// size is written into pages that the system has yet to find and clear. Told to keep them, it mixes
// them with small objects that outlive them, so that large holes are cut into pieces. Here blocks
// of a megabyte and more come from one region: the smallest hole that is large enough, neighboring
// holes joined. What was written once stays with the process. Everything smaller goes to the
// allocator that was there before.
//
// This is the one library that uses PyTorch's C++ classes, which change between versions: it serves
// the version that it was built with.

#include <c10/core/CPUAllocator.h>

#include <cerrno>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// Where the blocks of a region are: offsets and sizes, no memory.
class Blocks {
 public:
  explicit Blocks(size_t num_bytes) : holes_{{0, num_bytes}} {}

  // The offset of a new block, or false where no hole is large enough.
  bool take(size_t num_bytes, size_t& offset) {
    auto best = holes_.end();
    for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
      if (hole->second >= num_bytes && (best == holes_.end() || hole->second < best->second)) {
        best = hole;
      }
    }
    if (best == holes_.end()) return false;
    const auto [start, size] = *best;
    holes_.erase(best);
    if (size > num_bytes) holes_.emplace(start + num_bytes, size - num_bytes);
    used_.emplace(start, num_bytes);
    offset = start;
    return true;
  }

  void give_back(size_t offset) {
    const auto block = used_.find(offset);
    size_t size = block->second;
    used_.erase(block);
    auto next = holes_.lower_bound(offset);
    if (next != holes_.end() && next->first == offset + size) {
      size += next->second;
      next = holes_.erase(next);
    }
    if (next != holes_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == offset) {
        before->second += size;
        return;
      }
    }
    holes_.emplace(offset, size);
  }

 private:
  std::map<size_t, size_t> holes_;  // by offset, so that neighbors are found
  std::unordered_map<size_t, size_t> used_;
};

class LargeBlocks final : public c10::Allocator {
 public:
  LargeBlocks(c10::Allocator* others, char* region, size_t num_bytes)
      : others_(others), region_(region), num_bytes_(num_bytes), blocks_(num_bytes) {}

  c10::DataPtr allocate(size_t num_bytes) override {
    void* data = nullptr;
    if (num_bytes >= kLarge && num_bytes <= num_bytes_) {
      const std::lock_guard lock(mutex_);
      size_t offset = 0;
      if (blocks_.take(round_up(num_bytes, kPage), offset)) data = region_ + offset;
    }
    if (data) {
      c10::profiledCPUMemoryReporter().New(data, num_bytes);
    } else {
      data = others_->raw_allocate(num_bytes);
    }
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, std::size_t count) const override {
    default_copy_data(to, from, count);
  }

  // In force for the rest of the process, which may free tensors until its very end.
  static inline LargeBlocks* in_force = nullptr;

 private:
  static void release(void* data) {
    LargeBlocks& self = *in_force;
    const auto offset = static_cast<size_t>(static_cast<char*>(data) - self.region_);
    if (data < self.region_ || offset >= self.num_bytes_) {
      self.others_->raw_deallocate(data);
      return;
    }
    c10::profiledCPUMemoryReporter().Delete(data);
    const std::lock_guard lock(self.mutex_);
    self.blocks_.give_back(offset);
  }

  c10::Allocator* const others_;
  char* const region_;
  const size_t num_bytes_;
  std::mutex mutex_;
  Blocks blocks_;
};

}  // namespace

// Sets the allocator for the rest of the process; a second call does nothing. Returns why it could
// not be set, or null.
extern "C" const char* replica_keep_large_blocks() {
#if defined(__linux__)
  if (LargeBlocks::in_force) return nullptr;
  // As much address space as there is memory; pages count once they are written.
  const size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  const size_t num_bytes = round_up(memory, kHugePage);
  void* const mapping = mmap(
      nullptr, num_bytes + kHugePage, PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    static const std::string problem = std::string("no address space: ") + std::strerror(errno);
    return problem.c_str();
  }
  char* const region =
      reinterpret_cast<char*>(round_up(reinterpret_cast<size_t>(mapping), kHugePage));
  madvise(region, num_bytes, MADV_HUGEPAGE);  // where the system has none, small ones serve
  LargeBlocks::in_force = new LargeBlocks(c10::GetCPUAllocator(), region, num_bytes);
  c10::SetCPUAllocator(LargeBlocks::in_force);
  return nullptr;
#else
  return "only on Linux";
#endif
}

extern "C" const char* replica_built_for() { return "with PyTorch " REPLICA_TORCH_VERSION; }
