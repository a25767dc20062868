"""Deployment over real machines: its folders, certificates and keys."""
