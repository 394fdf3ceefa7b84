"""Load tests: requests that start when they are planned to, however long the ones before them take.

`shapes` and `mix` say what is asked for when; `target` on which token; `generator` drives the processes that sign, of
which `facade` is the one in Python and bench/native/load the one in C; `faults` breaks the module on a timeline;
`buckets` and `hdrlog` are the histograms; `objectives` judges; `run` is the whole. docs/BENCHMARKS.md says how to read
the figures.
"""
