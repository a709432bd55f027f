"""Latency: the fixed number of runs of one model, and the paired comparison of several."""

from quantlib.measuring.latency.fixed import benchmark_onnx_model
from quantlib.measuring.latency.launches import Launches, Sampling, sample_ratios
from quantlib.measuring.latency.paired import PairedRatio, Timed, ratio_interval, take_turns
from quantlib.measuring.latency.process import TimedProcess
from quantlib.measuring.latency.stats import LatencyStats, time_calls

__all__ = [
    "LatencyStats",
    "Launches",
    "PairedRatio",
    "Sampling",
    "Timed",
    "TimedProcess",
    "benchmark_onnx_model",
    "ratio_interval",
    "sample_ratios",
    "take_turns",
    "time_calls",
]
