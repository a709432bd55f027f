"""Hostile files: damaged and ill-meant ones of every form that quantlib reads, 1,000 of each.

    python -m bench.hostile [--count 1000] [--formats onnx,safetensors] [--seed 0] [--only NUMBER]

Each file is read as the commands read it. What may happen: it is read, or refused with an `InputError` of one
line. What may not: any other exception, more than 10 s, more than 4 GiB, the end of the process, or a result
that is known to be wrong. `formats` has a row for each form, `damage` and `graphs` make the files, `trying`
tries one.
"""
