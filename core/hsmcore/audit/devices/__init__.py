"""What one kind of device offers beside PKCS#11."""
