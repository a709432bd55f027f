"""The pytest plugin for tests of quantized models; the only place that imports pytest.

It is loaded in every pytest run where quantlib is installed, and does nothing until a test asks for one of
its fixtures or a flag of it is given. `-p no:quantlib` switches it off.
"""
