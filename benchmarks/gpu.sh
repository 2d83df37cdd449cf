#!/bin/bash
# What is to be measured wherever a GPU is at hand: kernels and the device's profile, training steps, finding codes,
# decoding, SmolLM2's whole training. Results are JSON files; benchmarks/gpu_catalog.py makes a catalogue entry of them.
#
#   benchmarks/gpu.sh                     # here: on the GPU, or without one on tiny shapes, some minutes
#   benchmarks/gpu.sh prepare [TEXT]      # lays out what a machine without a network needs: .gpu/a and .gpu/b, 60 MB each
#   benchmarks/gpu.sh a                   # there, with .gpu/a; then, in the same machine, with .gpu/b:
#   benchmarks/gpu.sh b
#
# Each takes four and a half minutes at most: SECONDS_A and SECONDS_B change that. Results go to the folder $OUT, gpu-results unless set.
set -eu
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD:${PYTHONPATH:-}"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
out=${OUT:-gpu-results}
site=${SITE:-/tmp/bitfleet-site}
model=${MODEL:-/tmp/bitfleet-smollm2}

prepare() {
    text=${1:-../shared/text}
    exclude=$(git rev-parse --git-path info/exclude)
    grep -qxF /.gpu/ "$exclude" 2>/dev/null || echo /.gpu/ >> "$exclude"
    rm -rf .gpu && mkdir -p .gpu/a/wheels .gpu/b/text
    platforms=()
    for n in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
    # gguf and msgspec are what bitfleet imports beside what machines with torch and transformers have.
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" --implementation cp \
        "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d .gpu/a/wheels \
        humming-kernels==0.1.20 gguf==0.19.0 peft==0.21.2 msgspec nvidia-ml-py
    cp "$text/train.txt" "$text/eval.txt" .gpu/b/text/
    file=$("$python" -c 'from supernet.loading import default_model_path; print(default_model_path())')
    sha256sum < "$file" | cut -c1-64 > .gpu/b/sha256
    gzip -9 -c "$file" > .gpu/model.gz
    split -n 2 -d .gpu/model.gz .gpu/model.part && rm .gpu/model.gz
    mv .gpu/model.part00 .gpu/a/ && mv .gpu/model.part01 .gpu/b/
    du -sh .gpu/a .gpu/b
}

machine() {
    nvidia-smi --query-gpu=name,memory.total,driver_version,power.limit --format=csv,noheader 2>/dev/null || echo "no GPU answers"
}

case ${1:-here} in
    prepare) prepare "${@:2}" ;;
    here) machine; "$python" benchmarks/gpu.py --out "$out" "${@:2}" ;;
    a)
        for wheel in .gpu/a/wheels/*.whl; do  # one by one: what is of another Python stops no other
            "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheel" ||
                echo "left out: $(basename "$wheel")"
        done
        export PYTHONPATH="$site:$PYTHONPATH"
        mkdir -p "$model" && cp .gpu/a/model.part00 "$model/"
        machine
        "$python" benchmarks/gpu.py --out "$out" --seconds "${SECONDS_A:-270}" --parts products,step-1b,step-8b,blocks,decode
        ;;
    b)
        export PYTHONPATH="$site:$PYTHONPATH"
        cat "$model/model.part00" .gpu/b/model.part01 | gzip -dc > "$model/SmolLM2-135M-Instruct.gguf"
        [ "$(sha256sum < "$model/SmolLM2-135M-Instruct.gguf" | cut -c1-64)" = "$(cat .gpu/b/sha256)" ] ||
            { echo "the model did not arrive whole: run \`benchmarks/gpu.sh a\` on this machine first" >&2; exit 2; }
        "$python" benchmarks/gpu.py --out "$out" --seconds "${SECONDS_B:-270}" --parts training,long \
            --model "$model/SmolLM2-135M-Instruct.gguf" --text .gpu/b/text
        ;;
    *) echo "the first argument is prepare, here, a or b, got $1" >&2; exit 2 ;;
esac
