"""The key manager that an application holds, and what it is made of.

Reading order: key_manager, lifecycle, keys, background; then recording, verification, describe, notices.
"""
