#!/usr/bin/env bash
# Everything that wants a GPU, from a checkout, in a table of steps that fits the time there is:
#
#   bash bench/gpu.sh [--call 1|2] [--seconds N] [--list] [OUT_DIR]
#
# Call 1 builds for the GPU at hand, tests and measures; call 2, on the same checkout, evolves real
# networks and looks closer. The order is by value: what does not fit N seconds is not begun, and no step outlives them. OUT_DIR,
# by default bench/results/<gpu>, gets summary.json (what was run with which outcome in how many
# seconds, on which machine, at which commit) and results.tgz (logs, rows, JUnit), both renewed after
# every step. PYTHON names the interpreter (python3), DEEVO_COMMIT the commit where git cannot, and
# FASHION_MNIST the folder of that data set's four files (fashion-mnist, which git ignores).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Call, step, its most seconds, command. & in front: beside the steps that follow.
table=(
  "1 build         60 build"
  "1 convolutions  60 & compile_ahead"
  "1 smoke         40 tests -m 'gpu and smoke'"
  "1 memcheck     110 & sanitize memcheck"
  "1 bits         110 tests -m 'gpu and not smoke and not slow' -n 12 --dist worksteal"
  "1 limits        12 rows --threads 1 --case copy,matmul --dtype float32,tf32,bfloat16,float16"
  "1 trials        30 rows --threads 1 --case trials,commit --size resnet50 --np 20 --backend cuda,triton"
  "1 tables        12 rows --case plan,tell --np 20 --backend cuda,triton"
  "1 graph         12 rows --threads 1 --case graph --size resnet50 --np 20 --backend cuda"
  "1 compose       18 rows --threads 1 --case compose --size resnet50 --np 12 --backend cuda,triton"
  "1 model         18 rows --case linear_scores --np 1000 --dtype float16 --backend triton"
  "1 members       20 rows --threads 1 --case trials,commit --size resnet50 --np 10,50,100 --backend cuda"
  "1 networks      90 rows --case forward --size resnet50 --np 8 --dtype float16 --backend fused,members,channels-last"
  "1 compile       58 rows --case forward --size resnet50 --np 8 --dtype float16 --backend compile"
  "2 evolve       260 fashion"
  "2 ncu           35 profile"
  "2 layers        40 rows --case layers --size resnet50 --dtype float16"
  "2 racecheck     40 sanitize racecheck"
  "2 small         30 rows --case forward --size resnet20 --np 64 --dtype float16 --backend fused,members"
)

usage() { sed -n 4p "${BASH_SOURCE[0]}" >&2 && exit 2; }
call=1 seconds="" out=""
while (($#)); do
  case $1 in
    --call) call=${2:-} && shift ;;
    --seconds) seconds=${2:-} && shift ;;
    --list) printf '%s\n' "${table[@]}" && exit ;;
    -*) usage ;;
    *) out=$1 ;;
  esac
  shift
done
[[ $call =~ ^[12]$ && $seconds =~ ^[0-9]*$ ]] || usage

export python=${PYTHON:-python3} PYTHONPATH="$PWD" DEEVO_REQUIRE_GPU=1
query() { nvidia-smi --query-gpu="$1" --format=csv,noheader --id=0 2> /dev/null; }
gpu=$(query name) || { echo "gpu.sh: nvidia-smi finds no GPU on this machine" >&2 && exit 1; }
capability=$(query compute_cap)
slug=$(tr '[:upper:]' '[:lower:]' <<< "$gpu" | tr -cs 'a-z0-9\n' '-' | sed 's/^-//; s/-$//')
out=${out:-bench/results/$slug}
mkdir -p "$out"
out=$(cd "$out" && pwd) work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export capability work
# What an earlier call left here stays in the archive.
[[ $call == 1 || ! -e $out/results.tgz ]] || tar -xzf "$out/results.tgz" -C "$work" --strip-components=1
[[ -n $seconds ]] || seconds=$([[ $call == 1 ]] && echo 405 || echo 350)

# The commands of the table; a step's name is $step, and $limit its seconds. One that cannot be run
# says why in its last line and exits with 77.
absent() { echo "the tool is not on PATH" && exit 77; }

build() {
  FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$capability "$python" setup.py build_ext --inplace
}

compile_ahead() {
  cd python_tests && TRITON_INTERPRET=0 "$python" -m support.compile_convolutions \
    "${capability/./}" float16
}

tests() {
  # Of all tests these files alone have some for a GPU: the others need not be imported.
  local files
  mapfile -t files < <(grep -rlE 'mark\.gpu' --include='test_*.py' python_tests | sort)
  "$python" -P -m pytest -p no:cacheprovider -q --junitxml="$work/$step.xml" "${files[@]}" "$@"
}

sanitize() {
  command -v compute-sanitizer || absent
  local only=()
  compute-sanitizer --help | grep -q -- --kernel-regex && only=(--kernel-regex kns=deevo)
  # torch's caching allocator would hide accesses beyond a tensor in its large blocks.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" "${only[@]}" --error-exitcode 99 \
    "$python" -P -m pytest -p no:cacheprovider -q python_tests/backends/test_cuda.py \
    -k "not triton and ((some_members and dtype1) or (tall and 300) or (lessons and mixed))"
}

profile() {
  command -v ncu || absent
  ncu --clock-control none --kernel-name regex:tile_kernel --launch-count 6 --set full \
    "$python" -m bench --device cuda --case trials --size resnet50 --np 20 --backend cuda \
    --repetitions 5 --budget 0.1
}

rows() {
  "$python" -m bench --device cuda --budget 1 --json "$work/rows-$step.json" \
    --markdown "$work/rows-$step.md" "$@"
}

fashion() {
  local folder=${FASHION_MNIST:-fashion-mnist}
  [[ -e $folder/train-images-idx3-ubyte.gz ]] ||
    { echo "Fashion-MNIST is not in the folder $folder" && exit 77; }
  "$python" -m bench.fashion --device cuda --seconds $((limit - 10)) "$folder" "$work/fashion"
}
export -f absent build compile_ahead tests sanitize profile rows fashion

# note STEP OUTCOME SECONDS: into summary.json, onto the screen, and the results are packed again.
note() {
  printf 'gpu.sh: %s: %s (%s s)\n' "$@"
  [[ $2 == passed || $2 == not\ * ]] || touch "$work/.failed"
  "$python" -P bench/summary.py "$out/summary.json" "$work" "$@" || touch "$work/.failed"
}

refusals='not supported|unsupported|failed to initialize|unable to (launch|attach)|ERR_NVGPUCTRPERM'

# run STEP SECONDS COMMAND: one row of the table.
run() {
  local name=$1 limit=$2 log="$work/$1.log" begun=$SECONDS status outcome
  step=$name limit=$limit timeout --kill-after=5 "$limit" bash -c "$3" > "$log" 2>&1
  status=$?
  case $status in
    0) outcome=passed ;;
    77) outcome="not run: $(tail -n 1 "$log")" ;;
    124 | 137) outcome="stopped after $limit s" ;;
    *) outcome="failed with status $status" ;;
  esac
  if [[ $3 =~ ^(sanitize|profile) && $outcome == failed* ]] && grep -qiE "$refusals" "$log" &&
    ! grep -q ' passed' "$log"; then
    outcome="not run: the tool refuses this machine"
  fi
  note "$name" "$outcome" $((SECONDS - begun))
  [[ $outcome != failed* ]] || tail -n 15 "$log"
}

SECONDS=0
for row in "${table[@]}"; do
  read -r of name limit command <<< "$row"
  [[ $of == "$call" ]] || continue
  left=$((seconds - SECONDS))
  if ((left <= 0)); then
    note "$name" "not begun: the $seconds s were over" 0
    continue
  fi
  limit=$((limit < left ? limit : left))
  if [[ $command == "& "* ]]; then
    run "$name" "$limit" "${command#& }" &
  else
    run "$name" "$limit" "$command"
  fi
done
wait
[[ ! -e $work/.failed ]]
