"""Merlin models: the two-tower retriever and the multi-task DLRM ranker; training and export to ONNX."""
