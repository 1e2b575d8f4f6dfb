"""The machine's own ceiling: matrix products in both dtypes, memory bandwidth. Other benchmarks measure it again."""

from __future__ import annotations

from benchmarks.common import arguments, matmul_gflops, memory_gib_s, set_threads, write_result


def main() -> None:
    chosen = arguments(__doc__)
    set_threads()
    facts = {f"matmul_gflops_{dtype}": matmul_gflops(dtype) for dtype in ("float32", "bfloat16")}
    facts["memory_gib_s"] = memory_gib_s()
    print(facts, flush=True)
    write_result("machine", [], chosen.out, **facts)


if __name__ == "__main__":
    main()
