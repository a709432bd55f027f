"""The main job, one command: `python quantization_experiments.py --help`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from quantlib.compression.recipes import DEFAULT_RECIPES, RECIPES, split_names
from quantlib.data.tasks import TASKS, get_task
from quantlib.experiment.options import ExperimentOptions
from quantlib.support.console import run_app

# As wide as the table of results with quantized students: a log needs no lines of 80 columns.
_LOG_COLUMNS = 100

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    task: Annotated[str, Option(help=f"One of {', '.join(TASKS)}.")] = "BBC-News",
    data_dir: Annotated[
        Path | None, Option(help="Directory with the task's GLUE files; without it, rows come from the hub.")
    ] = None,
    teacher: Annotated[
        str | None,
        Option(help="Fine-tuned checkpoint, DIR or HUB_ID; default: fine-tune the packaged MiniLM."),
    ] = None,
    student: Annotated[
        list[str] | None,
        Option(help="Distilled checkpoint, DIR or HUB_ID; may be repeated; default: make one."),
    ] = None,
    no_student: Annotated[bool, Option("--no-student", help="Leave the student out.")] = False,
    distill: Annotated[
        bool, Option("--distill", help="Distil a student from the teacher; the default where none is given.")
    ] = False,
    student_config: Annotated[
        str,
        Option(
            help="The student to distil: half (of the teacher's layers), tinybert-4-312, tinybert-6-768, or "
            "layers=4,width=312,ffn=1200,heads=12; init=random or init=DIR_OR_HUB_ID says where it starts."
        ),
    ] = "half",
    transformer_epochs: Annotated[
        int,
        Option(help="Epochs in which a student learns from the teacher's layers."),
    ] = ExperimentOptions.transformer_epochs,
    prediction_epochs: Annotated[
        int, Option(help="Epochs in which it learns from logits and labels.")
    ] = ExperimentOptions.prediction_epochs,
    augment: Annotated[
        int, Option(help="Copies of each row, words replaced by likely ones, that a student learns from too.")
    ] = ExperimentOptions.augment,
    recipes: Annotated[
        str, Option(help=f"Comma-separated names, or all. Known: {', '.join(RECIPES)}.")
    ] = ",".join(DEFAULT_RECIPES),
    seq_len: Annotated[int, Option(help="Longest sequence in tokens, and the length that is timed.")] = 128,
    opset: Annotated[int, Option(help="ONNX operator set of the export, 13 to 18.")] = 17,
    batch_size: Annotated[int, Option(help="Rows in a batch that is timed.")] = 1,
    threads: Annotated[int | None, Option(help="Threads of a session; default: the physical cores.")] = None,
    calibration_samples: Annotated[int, Option(help="Rows that static recipes are calibrated on.")] = 512,
    train_rows: Annotated[int | None, Option(help="Train on the first N rows only.")] = None,
    warmup_runs: Annotated[int, Option(help="Untimed runs before the timed ones.")] = 5,
    num_runs: Annotated[int, Option(help="Timed runs.")] = 30,
    output_dir: Annotated[Path, Option(help="Where OUTPUT_DIR/TASK/ is written.")] = Path("runs"),
    cache_dir: Annotated[
        Path | None,
        Option(help="Where trained and built models are kept; default: the user's cache directory."),
    ] = None,
    seed: Annotated[int, Option(help="Seed of the training.")] = 42,
    max_drop: Annotated[
        float | None,
        Option(
            help="Also find the variant that loses at most this fraction of the primary metric "
            "(0.005 is half a point), and write its recipe."
        ),
    ] = None,
    max_drop_base: Annotated[
        str, Option(help="The recipe in which the search for --max-drop starts.")
    ] = "static_u8s8_smooth",
    explain: Annotated[
        bool, Option("--explain", help="Also tell what 8 bits cost each layer of the teacher, worst first.")
    ] = False,
    no_compile: Annotated[
        bool, Option("--no-compile", help="Quantize the graph as it is exported, to see what compiling wins.")
    ] = False,
    stock_sessions: Annotated[
        bool,
        Option("--stock-sessions", help="Time in sessions as ONNX Runtime opens them when told nothing."),
    ] = False,
    profile: Annotated[
        list[str] | None,
        Option(
            help="Also tell where the time of this variant goes, and how much of the machine's limit it "
            "uses; may be repeated.",
            metavar="VARIANT",
        ),
    ] = None,
) -> None:
    """Quantize a teacher, measure every variant and a student, and print what each one costs and wins."""
    from rich.console import Console

    from quantlib.experiment import budget, run
    from quantlib.machine.hardware import describe, int8_note
    from quantlib.measuring.explain import JSON, read_explanation
    from quantlib.measuring.explain import table as noise_table
    from quantlib.measuring.profile import file_name, read_profile, show
    from quantlib.report.tables import checks_table, front_note, table

    optional = {} if threads is None else {"threads": threads}
    options = ExperimentOptions(
        task=task,
        data_dir=data_dir,
        teacher=teacher,
        students=tuple(student or ()),
        no_student=no_student,
        distill=distill,
        student_config=student_config,
        transformer_epochs=transformer_epochs,
        prediction_epochs=prediction_epochs,
        augment=augment,
        recipes=split_names(recipes),
        seq_len=seq_len,
        opset=opset,
        batch_size=batch_size,
        calibration_samples=calibration_samples,
        train_rows=train_rows,
        warmup_runs=warmup_runs,
        num_runs=num_runs,
        output_dir=output_dir,
        cache_dir=cache_dir,
        seed=seed,
        max_drop=max_drop,
        max_drop_base=max_drop_base,
        explain=explain,
        compile=not no_compile,
        stock_sessions=stock_sessions,
        profile=tuple(profile or ()),
        **optional,
    )
    started, machine, name = time.perf_counter(), describe(), get_task(options.task).name
    out = Console()  # progress too: what is on stderr is what went wrong
    if not out.is_terminal:
        out.width = max(out.width, _LOG_COLUMNS)
    results = run(options, out)
    out.print(table(results, out.width))
    out.print(front_note(results), highlight=False, markup=False, soft_wrap=True)
    out.print()
    out.print(checks_table(results))
    if max_drop is not None:
        out.print(budget.table(output_dir / name / budget.SENSITIVITY_FILE))
    if explain:
        layers = read_explanation(output_dir / name / JSON)
        out.print(noise_table(layers), crop=False)  # a line a layer, however narrow the place
    for variant in dict.fromkeys(options.profile):
        show(read_profile(output_dir / name / file_name(variant)), out)
    notes = [
        f"{name}, {batch_size}x{seq_len}, {options.threads} threads, {machine.cpu_model}. "
        f"{int8_note(machine)}",
        f"Done in {time.perf_counter() - started:.0f} s; written to {output_dir / name}",
    ]
    for note in notes:
        out.print(note, highlight=False, markup=False, soft_wrap=True)


def cli(arguments: list[str] | None = None) -> int:
    """Run the command; what the user got wrong is one line on stderr and exit code 2."""
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(cli())
