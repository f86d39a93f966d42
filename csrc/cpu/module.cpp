// PyInit__C and build_info(); the ops register themselves. Limited API: one abi3 wheel.
#ifndef Py_LIMITED_API  // the build sets it for abi3 wheels
#define Py_LIMITED_API 0x030a0000
#endif
#include <Python.h>

#include <string>

#include "../core/macros.h"

namespace {

const char* simd_level() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return "x86-64-v4";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "x86-64-v3";
  return "x86-64";
#else
  return "baseline";
#endif
}

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:s,s:s}", "compiler", __VERSION__, "torch", SK_BUILD_TORCH,
                       "flags", SK_BUILD_FLAGS, "simd", simd_level());
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "Compiler, torch version at build time, flags, and the instruction set picked at run time."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
