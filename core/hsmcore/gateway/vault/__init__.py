"""The gateway's second face: the part of HashiCorp Vault's transit API that signs.

Reading order: text, signing, face. docs/GATEWAY.md says what it answers.
"""
