// Reads of mapped files whose bytes are not there any more.
//
// Who reads a page behind the end of a file that was cut off after it was mapped, or one that a
// disk fails to give, gets SIGBUS, which ends the process without a word. Here such a page of a
// watched range becomes one of zeros, and the range remembers where: the reader goes on, and who
// asks afterwards knows that what was read is worth nothing. Every other SIGBUS goes to whoever
// handled it before.

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <mutex>
#include <vector>

namespace {

struct Range {
  uintptr_t begin;
  uintptr_t end;
  std::atomic<bool> is_watched{false};
  std::atomic<uintptr_t> lost{0};  // the first address that could not be read
  Range* next;
};

// Only grows, as a signal may come at any time: who is watched no more makes room for the next.
std::atomic<Range*> ranges{nullptr};
std::atomic<uint64_t> num_lost{0};  // pages, of all ranges
std::vector<Range*> unused;
std::mutex registration;
struct sigaction others;
uintptr_t page_size;

Range* range_of(uintptr_t address) {
  for (Range* range = ranges.load(); range; range = range->next) {
    if (range->is_watched && address >= range->begin && address < range->end) return range;
  }
  return nullptr;
}

// In a signal: calls the system and touches atomics, nothing else.
void on_bus_error(int, siginfo_t* information, void*) {
  const int error = errno;
  const auto address = reinterpret_cast<uintptr_t>(information->si_addr);
  const bool is_read = information->si_code > 0;  // not sent by a process
  if (Range* const range = is_read ? range_of(address) : nullptr) {
    uintptr_t none = 0;
    range->lost.compare_exchange_strong(none, address);
    ++num_lost;
    void* const page = reinterpret_cast<void*>(address - address % page_size);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap(page, page_size, PROT_READ, flags, -1, 0) != MAP_FAILED) {
      errno = error;
      return;
    }
  }
  sigaction(SIGBUS, &others, nullptr);
  if (!is_read) raise(SIGBUS);  // the same read meets it again
}

// Another handler may have been set since the last range.
bool handle_bus_errors() {
  struct sigaction now = {};
  if (sigaction(SIGBUS, nullptr, &now)) return false;
  if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error) return true;
  others = now;
  struct sigaction own = {};
  own.sa_sigaction = on_bus_error;
  own.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&own.sa_mask);
  return sigaction(SIGBUS, &own, nullptr) == 0;
}

}  // namespace

// Watches mapped bytes; returns their range, or null where the system has no such handlers.
extern "C" void* replica_watch_mapped(void* begin, uint64_t num_bytes) {
  const std::lock_guard lock(registration);
  page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  if (!handle_bus_errors()) return nullptr;
  const auto first = reinterpret_cast<uintptr_t>(begin);
  Range* range = nullptr;
  if (unused.empty()) {
    range = new Range;
    range->next = ranges.load();
    ranges = range;
  } else {
    range = unused.back();
    unused.pop_back();
  }
  range->begin = first - first % page_size;
  range->end = first + num_bytes;
  range->lost = 0;
  range->is_watched = true;
  return range;
}

// How many pages of watched ranges could not be read until now.
extern "C" uint64_t replica_num_lost_of_mapped() { return num_lost; }

// The first address of a range that could not be read, or 0.
extern "C" uint64_t replica_lost_of_mapped(const void* range) {
  return static_cast<const Range*>(range)->lost;
}

// Ends the watch: the bytes are mapped no more.
extern "C" void replica_unwatch_mapped(void* range) {
  const std::lock_guard lock(registration);
  static_cast<Range*>(range)->is_watched = false;
  unused.push_back(static_cast<Range*>(range));
}
