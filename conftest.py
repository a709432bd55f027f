"""Loads quantlib's pytest plugin for the benchmarks in bench/."""

pytest_plugins = ["quantlib.harness.plugin"]
