"""Benchmarks: hsmcore beside a raw C loop and beside the libraries one would use otherwise, measured in turn.

Reading order: model, catalogue (scenarios/*.toml), runner, commands, child/; then stats, summary, targets, report.
"""
