"""Shallop's converter beside its peers: `python -m bench.converter`, or `make bench-converter`.

For: accuracy, size, latency ratio to FP32, conversion time and peak memory of Shallop's choice, of
onnxruntime's `quantize_static` (as an expert sets it, and with its defaults) and of NNCF, on the same
models, samples and machine, in one run.
Not for: figures of a device; every latency here is this host's.
"""
