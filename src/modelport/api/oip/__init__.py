"""The Open Inference Protocol V2 over HTTP, so that clients of KServe and Triton work unchanged.

Source: https://github.com/kserve/open-inference-protocol (inference_rest.yaml and the binary tensor data extension).
"""
