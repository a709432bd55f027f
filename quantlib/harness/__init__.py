"""The pytest plugin: options, fixtures and hooks of `pytest bench`; the only place that imports pytest.

A project loads it from its root conftest.py with `pytest_plugins = ["quantlib.harness.plugin"]`. It serves
one directory, `bench` if the ini option `quantlib_bench` does not name another, and is silent in any other
run.
"""
