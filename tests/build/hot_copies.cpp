// Copies that count the same everywhere: those of libc differ between processors and releases, and
// so do the instructions of what is copied by them.
#include <cstddef>
#include <cstdint>

#if !defined(__SANITIZE_ADDRESS__)

namespace {

typedef uint64_t Pair __attribute__((vector_size(16), aligned(1), may_alias));

}  // namespace

extern "C" {

void* memcpy(void* __restrict__ to, const void* __restrict__ from, size_t bytes) {
  auto* d = static_cast<unsigned char*>(to);
  const auto* s = static_cast<const unsigned char*>(from);
  for (; bytes >= 16; bytes -= 16, d += 16, s += 16) {
    *reinterpret_cast<Pair*>(d) = *reinterpret_cast<const Pair*>(s);
  }
  for (; bytes > 0; --bytes) *d++ = *s++;
  return to;
}

void* memmove(void* to, const void* from, size_t bytes) {
  auto* d = static_cast<unsigned char*>(to);
  const auto* s = static_cast<const unsigned char*>(from);
  if (d <= s || d >= s + bytes) return memcpy(to, from, bytes);
  while (bytes-- > 0) d[bytes] = s[bytes];
  return to;
}

void* memset(void* to, int value, size_t bytes) {
  auto* d = static_cast<unsigned char*>(to);
  for (; bytes > 0; --bytes) *d++ = static_cast<unsigned char>(value);
  return to;
}
}

#endif
