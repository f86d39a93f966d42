// Hides what the processor has above an x86-64 level (-DSK_LEVEL=1, 3 or 4), so that the clones and
// the intrinsics of that level are picked. Linked with --wrap=__cpu_indicator_init, which every
// resolver calls before it looks.
#include <cstdint>

extern "C" {

// libgcc's record of the processor, which the resolvers and __builtin_cpu_supports() read
extern unsigned cpu_model[4] asm("__cpu_model");  // the last one is a set of features
extern unsigned cpu_features2[3] asm("__cpu_features2");

int __real___cpu_indicator_init();

#define HAS(feature) (__builtin_cpu_supports(feature) ? 1 : 0)

static int above() {
  asm volatile("" ::: "memory");
  int has = 0;
  if (SK_LEVEL < 4) {
    has += HAS("avx512f") + HAS("avx512bw") + HAS("avx512cd") + HAS("avx512dq") + HAS("avx512vl") +
           HAS("avx512vbmi") + HAS("avx512vbmi2") + HAS("avx512ifma") + HAS("avx512vnni") +
           HAS("avx512bitalg") + HAS("avx512vpopcntdq") + HAS("avx512bf16") + HAS("x86-64-v4");
  }
  if (SK_LEVEL < 3) {
    has += HAS("sse3") + HAS("ssse3") + HAS("sse4.1") + HAS("sse4.2") + HAS("popcnt") + HAS("avx") +
           HAS("avx2") + HAS("fma") + HAS("bmi") + HAS("bmi2") + HAS("lzcnt") + HAS("f16c") +
           HAS("movbe") + HAS("x86-64-v2") + HAS("x86-64-v3");
  }
  return has;
}

// Which bit is which feature is libgcc's matter: those go without which something above is missing.
static void hide(volatile unsigned* word) {
  for (int bit = 0; bit < 32; ++bit) {
    const unsigned all = *word;
    const int before = above();
    *word = all & ~(1u << bit);
    if (above() == before) *word = all;
  }
}

int __wrap___cpu_indicator_init() {
  const int result = __real___cpu_indicator_init();
  hide(cpu_model + 3);
  for (unsigned& word : cpu_features2) hide(&word);
  return result;
}
}
