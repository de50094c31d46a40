#!/bin/sh
# Compiles main.cpp against the torch that PYTHON (default: python3) has installed: build.sh [OUTPUT]
set -eu

here=$(dirname "$0")
output=${1:-convt_run}
torch=$("${PYTHON:-python3}" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')

# --no-as-needed: LibTorch's libraries register their operators when loaded, so the linker must keep them all.
# --allow-shlib-undefined: they find the CUDA libraries that they need themselves, when the program runs.
g++ -std=c++20 -O1 "$here/main.cpp" -o "$output" \
    -I"$torch/include" -I"$torch/include/torch/csrc/api/include" \
    -L"$torch/lib" -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -Wl,--as-needed -ldl \
    -Wl,--allow-shlib-undefined -Wl,-rpath,"$torch/lib"
