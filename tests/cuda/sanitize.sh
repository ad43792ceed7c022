#!/bin/sh
# The kernels under a sanitizer: sanitize.sh thread | address [python] [pytest arguments]
# thread: races between CUDA threads and between CUDA blocks, missing barriers and fences. address: reads and writes
# out of bounds, and undefined behaviour.
set -eu
kind=$1
python=${2-python3}
shift; [ $# -eq 0 ] || shift
cd "$(dirname "$0")/../.."
case $kind in
thread)
    export BPACCEL_SANITIZE=thread TSAN_OPTIONS="exitcode=66 report_signal_unsafe=0"
    library=libtsan.so
    some="(orders_of_threads and 2500) or 1-72 or last_steps or (however_late and 5000)" ;;
address)
    export BPACCEL_SANITIZE=address,undefined ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1
    library=libasan.so
    some="(orders_of_threads and 1024) or 1-72 or odd_addresses or mini_batches or (however_late and 5000)"
    some="$some or float32-C" ;;
*)
    echo "usage: sanitize.sh thread|address [python] [pytest arguments]" >&2
    exit 2 ;;
esac
# The sanitizer of a library that Python loads must be in the process from the start; and that of threads needs
# addresses that are little randomised (setarch -R), with gcc 12.
preload=$(g++ -print-file-name=$library)
same=$(setarch -R true 2>/dev/null && echo "setarch -R" || true)
[ $# -gt 0 ] || set -- -k "$some or order_of_threads or wide_softmax"
exec $same env LD_PRELOAD="$preload" "$python" -m pytest -q -x -n 0 -p no:cacheprovider tests/test_engines_cuda.py \
    tests/test_engines_wide.py "$@"
