// PyInit__C_cuda and build_info(); the ops register themselves. Limited API: one abi3 wheel.
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030a0000
#endif
#include <Python.h>
#include <cuda_runtime_api.h>

#include <string>

namespace {

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

PyObject* build_info(PyObject*, PyObject*) {
  int runtime = 0, driver = 0;
  const bool loaded = cudaRuntimeGetVersion(&runtime) == cudaSuccess;
  const bool driven = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:s,s:s,s:s}", "compiler", __VERSION__, "torch",
                       SK_BUILD_TORCH, "flags", SK_BUILD_FLAGS, "archs", SK_BUILD_ARCHS, "nvcc",
                       version(CUDART_VERSION).c_str(), "runtime",
                       loaded ? version(runtime).c_str() : "none", "driver",
                       driven ? version(driver).c_str() : "none");
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "Compiler, torch version at build time, flags, architectures, and versions of nvcc, the CUDA "
     "runtime and the driver."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module); }
