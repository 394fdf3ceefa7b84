"""Signing with AWS KMS: an HTTP client and a request signer (http, sigv4) under a client, a control plane and the
member.

botocore finds credentials, region and endpoint. It does not carry the signatures: a call through it takes 1 ms of
processor time, ten times as much as this client (bench/kms.py).
"""
