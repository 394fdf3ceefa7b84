#!/bin/bash -eu
# One program for each hostile input, in $OUT, with the inputs to begin with. The variables are those of OSS-Fuzz:
# SRC, OUT, WORK, CC, CFLAGS, LIB_FUZZING_ENGINE. tests/integration/test_fuzzers.py runs it without its image.
cd "$SRC/hsmcore"

cmake -S . -B "$WORK/native" -G Ninja -DHSMC_FUZZ=ON "-DHSMC_FUZZ_ENGINE=$LIB_FUZZING_ENGINE"
cmake --build "$WORK/native" --target fuzzers
for source in tests/fuzz/fuzz_*.c; do
    name="$(basename "$source" .c)"
    # It loads a PKCS#11 module by its path in the build's folder, which is not there when OSS-Fuzz runs it: CTest does.
    [[ "$name" != fuzz_module_answers ]] || continue
    cp "$WORK/native/$name" "$OUT/"
    corpus="tests/fuzz/corpus/${name#fuzz_}"
    if [[ -d "$corpus" ]]; then
        (cd "$corpus" && python3 -m zipfile -c "$OUT/${name}_seed_corpus.zip" *)
    fi
done
# The image that runs the fuzzers has no libraries of its own.
mkdir -p "$OUT/lib"
for name in libcrypto libsodium libjansson; do
    cp -L "$(ldconfig -p | sed -n "s/.*$name\.so\.[0-9.]* .*x86-64.* => //p" | head -n 1)" "$OUT/lib/"
done
for program in "$OUT"/fuzz_*; do
    if [[ -x "$program" && "$program" != *.zip ]] && command -v patchelf > /dev/null; then
        patchelf --set-rpath '$ORIGIN/lib' "$program"
    fi
done

if command -v compile_python_fuzzer > /dev/null; then
    pip3 install ".[fleet]" cryptography
    for source in tests/fuzz/fuzz_*.py; do
        PYTHONPATH="$PWD" compile_python_fuzzer "$source" --paths "$PWD"
        name="$(basename "$source" .py)"
        # What a fuzzer in Python begins with, it says itself.
        PYTHONPATH="$PWD" python3 -m tests.fuzz.seeds "$name" "$WORK/$name"
        (cd "$WORK/$name" && python3 -m zipfile -c "$OUT/${name}_seed_corpus.zip" *)
    done
fi
