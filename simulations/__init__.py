"""Engines that run the ServerApp and ClientApp on one machine, and what is compared there."""
