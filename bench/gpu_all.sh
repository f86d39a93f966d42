#!/usr/bin/env bash
# Everything that needs a GPU, in one call: build, correctness, memory checks, bench.
#   bench/gpu_all.sh [OUT]      OUT (default out/gpu): logs and bench rows land here
#   STEPS='build|tests' bench/gpu_all.sh      only the steps whose names match
# Uses the python3 on PATH, which must have a CUDA build of torch >= 2.11, triton and pytest, and an
# nvcc of torch's CUDA major. Commit what comes back in OUT/gpu_* under bench/results/, the picture
# under docs/results/.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-${OUT:-out/gpu}}
mkdir -p "$OUT"
export PYTHONPATH=$PWD:$PWD/python_api
arch=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
export TORCH_CUDA_ARCH_LIST=$arch SPARSE_KERNELS_BUILD=cuda SPARSE_KERNELS_BUILD_TESTS=1
status=0

step() { # step NAME SECONDS COMMAND...: run, log, keep going
  local name=$1 limit=$2
  shift 2
  [[ $name =~ ${STEPS:-.} ]] || return 0
  local begin=$SECONDS
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
  local rc=$?
  [ $rc -eq 0 ] || status=1
  printf '%-22s rc %3d  %4d s  %s\n' "$name" $rc $((SECONDS - begin)) "$(tail -n 1 "$OUT/$name.log")"
}

step build 300 python3 setup.py build_ext --inplace
step info 60 python3 -m sparse_kernels.info
step tests-kernels 500 python3 -m pytest -q --maxfail=20 \
  --require-backend cuda --require-backend triton tests/kernels \
  --ignore-glob='*test_triton*'
# the optimizers' tests use CPU tensors: here they check that this machine's build is sound
step tests-optim 300 python3 -m pytest -q tests/optim
step tests-capture 300 python3 -m pytest -q tests/optim/test_optim_capture_cuda.py \
  tests/optim/test_optim_zo_cuda.py
for tool in memcheck racecheck; do
  step "sanitizer-$tool" 300 compute-sanitizer --tool $tool --error-exitcode 9 \
    python3 bench/sanitize.py
done
bench() { # bench NAME SECONDS OPTIONS...: rows to OUT/SUITE.csv, one document to OUT/NAME.json
  local name=$1 limit=$2
  shift 2
  step "bench-$name" "$limit" python3 -m bench --device cuda --backend all "$@" \
    --csv "$OUT/gpu_{suite}.csv" --json "$OUT/gpu_$name.json"
}
large=(--elements 67108864)
for dtype in fp32 bf16; do
  for suite in sam bregman masks; do
    bench $suite-$dtype 550 --suite $suite --dtype $dtype "${large[@]}"
  done
  bench zo-$dtype 550 --suite zo --dtype $dtype "${large[@]}"
  bench models-$dtype 550 --suite models --dtype $dtype --no-compile \
    --model vit_b_16,gpt2,tinyllama_1b
done
bench host 550 --suite host
# compiling a whole list takes longer than its steps: the smallest model only
bench models-resnet50 550 --suite models --model resnet50
if ls "$OUT"/gpu_*.csv >/dev/null 2>&1; then
  step picture 60 python3 -m bench.plot "$OUT"/gpu_*.csv --out "$OUT/roofline_gpu.png"
  step targets 60 python3 -m bench --stored "$OUT"/gpu_*.csv
  cat "$OUT/targets.log"
fi
exit $status
