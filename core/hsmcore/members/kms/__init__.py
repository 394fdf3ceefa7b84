"""Signing with AWS KMS: a wire of its own (http, sigv4) under a client, a control plane and the member.

botocore finds credentials, region and endpoint. It does not carry the signatures: a call through it costs a millisecond
of processor time, ten times what this wire takes (bench/kms.py).
"""
