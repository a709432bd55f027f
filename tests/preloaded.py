"""What `warm` imports and reads before it forks processes; nothing else imports this."""

import hypothesis  # noqa: F401
import matplotlib.figure  # noqa: F401
import onnxscript  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.models.bert.modeling_bert  # noqa: F401

import quantlib.cli.run
import quantlib.experiment
import quantlib.harness.run  # noqa: F401
from quantlib.support import code

for path in code.ROOT.rglob("*.py"):
    code._module_hash(code._module_in(path))
    code._imports(code._module_in(path))
