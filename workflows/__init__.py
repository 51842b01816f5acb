"""NVTabular feature workflows, one per entity: fit, transform, and compile to an ONNX graph."""
