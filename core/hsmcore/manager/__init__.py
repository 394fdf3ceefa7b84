"""The key manager that an application holds, and its parts.

Reading order: key_manager, path, lifecycle, key_work, keys, background; then recording, verification, describe,
notices, key_managers.
"""
