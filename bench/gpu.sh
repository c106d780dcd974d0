#!/usr/bin/env bash
# Everything that wants a GPU, from a checkout:
#
#   bash bench/gpu.sh [build|test|sanitize|bench|networks] [OUT_DIR]      (no verb: all in turn)
#
#   build     installs this checkout, compiled for the GPU at hand
#   test      runs the tests that need a GPU, then the others as far as time goes; none may skip
#   sanitize  compute-sanitizer's memcheck and racecheck over small cases
#   bench     measures the operators beside the device's own copy and what else one could use
#   networks  measures populations of networks beside the roofline, eager PyTorch and torch.compile
#
# Each verb ends within 9 minutes and keeps what it has by then. OUT_DIR, by default
# bench/results/<gpu>, gets logs, rows-*.json, rows-*.md, and summary.json: what was run with which
# outcome, at which commit, with which driver and versions. PYTHON names the interpreter (python3).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
verbs=(build test sanitize bench networks)
case "${1:-}" in
  build | test | sanitize | bench | networks) verbs=("$1") && shift ;;
  "" | */* | .*) ;;
  *) echo "usage: bash bench/gpu.sh [build|test|sanitize|bench|networks] [OUT_DIR]" >&2 && exit 2 ;;
esac

query() { nvidia-smi --query-gpu="$1" --format=csv,noheader --id=0 2> /dev/null; }
gpu=$(query name) || { echo "gpu.sh: nvidia-smi finds no GPU on this machine" >&2 && exit 1; }
slug=$(tr '[:upper:]' '[:lower:]' <<< "$gpu" | tr -cs 'a-z0-9\n' '-' | sed 's/^-//; s/-$//')
out=${1:-bench/results/$slug}
mkdir -p "$out"
out=$(cd "$out" && pwd)
failed=0

# note VERB STEP OUTCOME: into summary.json, and onto the screen.
note() {
  printf 'gpu.sh: %s: %s: %s\n' "$@"
  "$python" -P bench/summary.py "$out/summary.json" "$@" || failed=1
}

refusals='not supported|unsupported|failed to initialize|unable to (launch|attach)'

# step VERB NAME SECONDS COMMAND...: runs a command with its output in a log.
step() {
  local verb=$1 name=$2 limit=$3 log="$out/$1-$2.log" status
  shift 3
  timeout --kill-after=10 "$limit" "$@" > "$log" 2>&1
  status=$?
  if [[ $verb == sanitize ]] && ! grep -q ' passed' "$log" && grep -qiE "$refusals" "$log"; then
    note "$verb" "$name" "not run: the tool refuses this machine, see $(basename "$log")"
    return
  fi
  case $status in
    0) note "$verb" "$name" passed ;;
    124 | 137) note "$verb" "$name" "stopped after $limit s" && failed=1 ;;
    *) note "$verb" "$name" "failed with status $status" && failed=1 && tail -n 15 "$log" ;;
  esac
  return "$status"
}

build() {
  local arch
  arch=$(query compute_cap)
  step build install 520 env FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" \
    "$python" -m pip install --no-build-isolation --no-deps --force-reinstall .
}

pytest_() { env DEEVO_REQUIRE_GPU=1 "$python" -P -m pytest -p no:cacheprovider -q "$@"; }
export -f pytest_
export python

run_tests() {
  step test gpu 360 bash -c 'pytest_ python_tests -m gpu'
  step test others 170 bash -c 'pytest_ python_tests -m "not gpu and not slow"'
}

sanitize() {
  local tool
  for tool in memcheck racecheck; do
    if ! command -v compute-sanitizer > /dev/null; then
      note sanitize "$tool" "not run: compute-sanitizer is not on PATH"
      continue
    fi
    # torch's caching allocator would hide accesses beyond a tensor in its large blocks.
    step sanitize "$tool" 260 env DEEVO_REQUIRE_GPU=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 99 --target-processes all \
      "$python" -P -m pytest -p no:cacheprovider -q python_tests/backends/test_cuda.py \
      -k "not triton and (some_members or start_anywhere or (tall and 300) or (lessons and mixed))"
  done
}

# rows VERB NAME SECONDS OPTIONS...: rows-NAME.json and .md, those that were measured in time.
rows() {
  local verb=$1 name=$2 limit=$3
  shift 3
  step "$verb" "$name" "$limit" "$python" -m bench --device cuda \
    --json "$out/rows-$name.json" --markdown "$out/rows-$name.md" "$@"
}

measure() {
  local own=cuda,triton operators=(--size resnet50 --threads 1)
  rows bench limits 50 --case copy,matmul --dtype float32,tf32,bfloat16,float16 --threads 1
  rows bench tables 50 --case plan,tell,plan+tell --np 20,50,100 --backend $own
  rows bench weights 170 --case trials,commit "${operators[@]}" --np 10,20,50,100 --backend $own
  rows bench graph 40 --case graph "${operators[@]}" --np 20,50 --backend $own
  rows bench six 40 --case trials-six "${operators[@]}" --np 20,50 --dtype bfloat16 --backend $own
  rows bench fold 45 --case fold --size resnet18 --np 20 --threads 1 \
    --dtype float32,float16 --backend $own
  rows bench head 15 --case head --threads 1 --dtype float32,float16 --backend cuda
  rows bench peers 120 --case generation "${operators[@]}" --np 20 --dtype float32 --repetitions 9 \
    --backend "$own,torch-loop,torch-vectorised,torch-compile,evox-de,evox-shade,evosax-de"
}

networks() {
  rows networks layers 60 --case layers --size resnet50 --dtype float16
  rows networks forward 260 --case forward --size resnet50,resnet18 --np 8 --dtype float16 \
    --backend fused,members,eager,channels-last,compile,compile-max
  rows networks small 110 --case forward --size resnet20 --np 64 --dtype float16 \
    --backend fused,members,eager,compile
  rows networks evolve 100 --case evolve,racing --size resnet50 --np 20 --dtype float16
}

for verb in "${verbs[@]}"; do
  case $verb in
    build) build ;;
    test) run_tests ;;
    sanitize) sanitize ;;
    bench) measure ;;
    networks) networks ;;
  esac
done
exit "$failed"
