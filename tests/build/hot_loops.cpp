// The CPU ops without libtorch, as a program:
//   hot_loops level            the x86-64 level whose clones are picked
//   hot_loops names            of all cases
//   hot_loops bits             a hash of all results of every case, over sizes and alignments
//   hot_loops steps [PATTERN]  instructions of every case, counted by single-stepping
//   hot_loops calls [PATTERN]  the same calls with nothing around them, for callgrind, which counts
//                              inside hot_call() and dumps after it
// "steps" and "calls" print NAME ELEMENTS, and "steps" also the instructions.
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>

#include "hot_cases.h"

namespace hot {

namespace {

const char* const kNames[] = {"uint8", "bool", "int32", "int64", "fp16", "bf16", "fp32", "fp64"};

std::string name_of(const Case& c, ScalarType type) { return c.name + "/" + kNames[int(type)]; }

volatile bool stepping = false;  // whether hot_call() counts by itself
volatile int64_t steps;

#if defined(__x86_64__)
constexpr uint64_t kTrap = 0x100;  // flag of the processor: a trap after every instruction

// a string instruction traps at every repetition, as callgrind counts it
void on_step(int) { steps = steps + 1; }
void set_trap() { asm volatile("pushfq\n\torq %0, (%%rsp)\n\tpopfq" ::"i"(kTrap) : "memory"); }
void clear_trap() {
  asm volatile("pushfq\n\tandq %0, (%%rsp)\n\tpopfq" ::"i"(int32_t(~kTrap)) : "memory");
}
void catch_traps() { std::signal(SIGTRAP, on_step); }
#else
void set_trap() {}
void clear_trap() {}
void catch_traps() {}
#endif

}  // namespace

static int level() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v4")) return 4;
  if (__builtin_cpu_supports("x86-64-v3")) return 3;
#endif
  return 1;
}

// What is counted, by either tool.
extern "C" __attribute__((noinline)) void hot_call(const std::function<void()>& call) {
  if (!stepping) return call();
  steps = 0;
  set_trap();
  call();
  clear_trap();
}

namespace {

// Results per element are differences of two counts: what is done once per call drops out.
// Signs are drawn for 4,096 elements at a time, and groups of more than 2,048 go another way.
std::vector<int64_t> counted(const Case& c) {
  const bool more = c.name.starts_with("zo_") || c.name.starts_with("prox_group_");
  const int64_t n = more ? 4096 : 2048;
  return {n, 2 * n};
}
// More than csrc/cpu/for_each.h leaves in the caches, and a task for every chunk; one of them is
// counted.
constexpr int64_t kStreamed = 65 * 65536;

void streamed(const Case& c, Inputs& in, const std::function<void(const Call&)>& run) {
  const Call call = c.make(in);
  torch::stable::threads = kStreamed / 65536;
  run(call);
  torch::stable::threads = 2;
}

void bits(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    for (const ScalarType type : c.types) {
      uint64_t hash = 0;
      for (const int64_t offset : {0, 1}) {
        Inputs in{{0, 1, 31, 33, 255, 257, 8192, 65535, 65537}, type, offset};
        const Call call = c.make(in);
        hash = 31 * hash + hashed(call());
        hash = 31 * hash + hashed(in.made);
      }
      std::printf("%s %016llx\n", name_of(c, type).c_str(), (unsigned long long)hash);
    }
    if (!c.streamed) continue;
    Inputs in{{kStreamed}, c.types[0], 0};
    streamed(c, in, [&](const Call& call) {
      const uint64_t hash = hashed(call());
      std::printf("%s/streamed %016llx\n", c.name.c_str(),
                  (unsigned long long)(31 * hash + hashed(in.made)));
    });
  }
}

void report(const std::string& name, int64_t elements) {
  if (stepping) {
    std::printf("%s %lld %lld\n", name.c_str(), (long long)elements, (long long)steps);
  } else {
    std::printf("%s %lld\n", name.c_str(), (long long)elements);
  }
  std::fflush(stdout);
}

void count(const std::vector<Case>& cases, const std::string& pattern) {
  for (const Case& c : cases) {
    if (c.name.find(pattern) == std::string::npos) continue;
    for (const ScalarType type : c.types) {
      if (type == ScalarType::Half || (type == ScalarType::Double && c.types.size() > 2)) continue;
      {  // what is made once, on the first call
        Inputs in{{256}, type, 0};
        c.make(in)();
      }
      for (const int64_t n : counted(c)) {
        Inputs in{{n}, type, 0};
        const Call call = c.make(in);
        hot_call([&] { call(); });
        report(name_of(c, type), n);
      }
    }
    if (!c.streamed) continue;
    Inputs in{{kStreamed}, c.types[0], 0};
    streamed(c, in, [&](const Call& call) {
      torch::stable::around_task_1 = hot_call;
      call();
      torch::stable::around_task_1 = nullptr;
      report(c.name + "/streamed", 65536);
    });
  }
}

}  // namespace

}  // namespace hot

int main(int argc, char** argv) {
#if defined(__x86_64__)
  __builtin_cpu_init();  // before anything is picked, where there are no clones with resolvers
#endif
  std::vector<hot::Case> cases = hot::step_cases();
  for (const auto& more : {hot::selection_cases(), hot::random_cases()}) {
    cases.insert(cases.end(), more.begin(), more.end());
  }
  const std::string what = argc > 1 ? argv[1] : "", pattern = argc > 2 ? argv[2] : "";
  if (what == "bits") {
    hot::bits(cases);
  } else if (what == "steps" || what == "calls") {
    hot::stepping = what == "steps";
    hot::catch_traps();
    hot::count(cases, pattern);
  } else if (what == "names") {
    for (const hot::Case& c : cases) std::printf("%s\n", c.name.c_str());
  } else if (what == "level") {
    std::printf("%d\n", hot::level());
  } else {
    std::fprintf(stderr,
                 "usage: hot_loops level | names | bits | steps [PATTERN] | calls [PATTERN]\n");
    return 2;
  }
}
