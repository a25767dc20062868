"""Measurements. Each prints a Markdown table and can write JSON; none of them asserts."""
