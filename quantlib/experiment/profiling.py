"""The profiles of the variants that `--profile` names."""

from __future__ import annotations

from collections.abc import Iterator

from quantlib.data import features
from quantlib.experiment.build import Built
from quantlib.experiment.options import ExperimentOptions
from quantlib.measuring import profile
from quantlib.support.progress import Steps


def profiles(built: Built, options: ExperimentOptions, steps: Steps) -> Iterator[profile.Profile]:
    """The profile of each variant that `options.profile` names, in the order of the variants."""
    named = [variant for variant in built.variants if variant.name in options.profile]
    if not named:
        return
    with steps.step("measure the machine's peak") as step:
        peak = profile.measure_peak(options.session)
        step.note = f"{peak.float_gops:.0f} Gop/s in float32, {peak.integer_gops:.0f} Gop/s in 8 bits"
    for variant in named:
        with steps.step(f"profile {variant.name}") as step:
            shape = options.batch_size, options.seq_len
            found = profile.profile_onnx(
                variant.path,
                list(features.fixed_shape_feeds(variant.rows, *shape, options.num_runs)),
                peak,
                session=options.session,
                variant=variant.name,
                warmup_runs=options.warmup_runs,
                num_runs=options.num_runs,
            )
            step.note = f"{100 * found.share:.0f} % of the machine's limit"
            if found.disturbed:
                step.note += "  noisy: the machine was busy, profile it again"
        yield found
